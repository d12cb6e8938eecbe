"""What each step of GPTQ is worth: perplexity of one model at uniform widths, variant by variant.

    python benchmarks/gptq_steps.py MODEL --text TEXT --calibration TEXT --out docs/results/gptq_steps.json

Variants are chosen on windows of the calibration text that no rounding sees (`held_nll`); the test text's
perplexity stands beside it and decides nothing. Run several with --part 0/16, 1/16, ... and join the files.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from command_line import own_command
from torch import Tensor

from apportion.bits.rounding.gptq import Gptq
from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.sequential import walk
from apportion.core.artifact import Json, write_json
from apportion.core.device import place
from apportion.formats import grid_width
from apportion.models.load import load_staged
from apportion.models.mixture import read_mixture
from apportion.models.pretrained import load_tokenizer
from apportion.models.staged import StagedModel
from apportion.models.text import windows_of

HELD, TOKENS, POOL, GROUP = 48, 512, 560, 64
LOOP: Json = {"dampings": (0.01,), "rounds": 0, "correction": 0.0}
REFINED: Json = {"dampings": (0.003, 0.01, 0.03), "correction": 0.0}


def corrected(share: float, damping: float = 0.03) -> Json:
    return {**REFINED, "correction": share, "correction_damping": damping}


VARIANTS: list[tuple[str, int, int, Json, bool]] = [  # name, bits, windows, settings, stages seen inside a block
    *(("loop", bits, 128, LOOP, True) for bits in (2, 3, 4)),
    *(("refined", bits, 128, REFINED, True) for bits in (2, 3, 4)),
    *(("corrected .5", bits, 128, corrected(0.5), True) for bits in (2, 3, 4)),
    *((f"corrected {share}", 2, 128, corrected(share), True) for share in (0.25, 0.75, 1.0)),
    ("corrected 1.0", 3, 128, corrected(1.0), True),
    *((f"corrected 1.0, damping {damping}", 2, 128, corrected(1.0, damping), True) for damping in (0.3, 1.0)),
    ("corrected .5, damping 0.3", 2, 128, corrected(0.5, 0.3), True),
    *(("refined", 2, windows, REFINED, True) for windows in (32, 512)),
    *(("corrected .5", 2, windows, corrected(0.5), True) for windows in (32, 512)),
    ("corrected 1.0", 2, 512, corrected(1.0), True),
    ("refined, one pass over a block", 2, 128, REFINED, False),
    ("refined, no activation order", 2, 128, {**REFINED, "activation_order": False}, True),
    ("refined, four rounds", 2, 128, {**REFINED, "rounds": 4}, True),
]


def rounded(staged: StagedModel, rounding: Gptq, bits: int, windows: Tensor, *, stages: bool) -> dict[str, Tensor]:
    """Every linear's weight, rounded on the CPU (many small steps) from moments taken where the model is."""
    found: dict[str, Tensor] = {}

    def visit(path: str, moments: Moments) -> Tensor:
        cross = None if moments.cross is None else moments.cross.cpu()
        here = Moments(moments.hessian.cpu(), cross, moments.tokens)
        item = rounding.round(staged.originals[path].cpu(), grid_width(bits, GROUP), here)
        found[path] = item.dequantize(staged.compute_dtype).to(staged.placement.device)
        return found[path]

    walk(staged, windows, visit, staged_blocks=stages)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="0/1")
    asked = parser.parse_args()
    staged, tokenizer = load_staged(asked.model, place("auto", "float32")), load_tokenizer(asked.model)
    drawn = read_mixture(asked.calibration, tokenizer, TOKENS).draw(POOL, seed=1).windows
    drawn = drawn[torch.randperm(POOL, generator=torch.Generator().manual_seed(0))]
    held, pool = drawn[:HELD], drawn[HELD:]
    test = windows_of(asked.text, tokenizer, TOKENS)[:128]
    rows: list[Json] = [{"variant": "full precision", **measured(staged, held, test)}]
    part, parts = map(int, asked.part.split("/"))
    for name, bits, windows, settings, stages in VARIANTS[part::parts]:
        began = time.monotonic()
        for path, weight in rounded(staged, Gptq(**settings), bits, pool[:windows], stages=stages).items():
            staged.model.get_submodule(path).weight.data = weight
        seconds = round(time.monotonic() - began, 1)
        row = {"variant": name, "bits": bits, "windows": windows, "seconds": seconds, **measured(staged, held, test)}
        staged.restore()
        print(json.dumps(row), flush=True)
        rows.append(row)
        write_json(asked.out, {"command": own_command(), "rows": rows})


def measured(staged: StagedModel, held: Tensor, test: Tensor) -> Json:
    return {
        "held_nll": float(staged.window_nll(held).mean()),
        "test_perplexity": float(np.exp(staged.window_nll(test).mean())),
    }


if __name__ == "__main__":
    main()
