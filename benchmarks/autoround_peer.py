"""AutoRound with AutoScheme as a peer: the same checkpoint, text, group size, players and average bits, judged alike.

    python benchmarks/autoround_peer.py MODEL --calibration c4-sample.jsonl --text wikitext2-test-raw.txt
        --avg-bits 2.25,2.5,3 --uniform 2,3,4 --iterations 200 --out docs/results/autoround_NAME.json

Runs in an environment of its own (`pip install auto-round==0.16.1` beside this package); it is no dependency.
Average bits count codes alone, as ours do. Its weights are read back decoded and judged with the model's own head.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from command_line import own_command
from judging import Judge

from apportion.bits.perplexity import first_windows
from apportion.core.artifact import Json, write_json
from apportion.core.device import peak_memory, place
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer

TITLE = "AutoRound 0.16.1 with AutoScheme: WikiText-2 and divergence from full precision"


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")] if text else []


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--avg-bits", type=numbers, default=[2.25, 2.5, 3.0])
    parser.add_argument("--uniform", type=numbers, default=[2.0, 3.0, 4.0])
    parser.add_argument("--widths", type=numbers, default=[2.0, 3.0, 4.0])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def rounded(asked: argparse.Namespace, scheme: Any) -> Any:
    """AutoRound's model, its linears decoded."""
    from auto_round import AutoRound

    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = AutoRound(
        asked.model, scheme=scheme, tokenizer=load_tokenizer(asked.model), dataset=str(asked.calibration),
        iters=asked.iterations, nsamples=asked.samples, seqlen=asked.window_tokens, device_map=device,
    )  # fmt: skip
    found = peer.quantize()
    return found[0] if isinstance(found, tuple) else found


def schemes(asked: argparse.Namespace) -> list[tuple[str, Any]]:
    """What is asked of it: uniform widths, and mixtures of average bits."""
    from auto_round import AutoScheme
    from auto_round.schemes import QuantizationScheme

    def width(bits: float) -> Any:
        return QuantizationScheme(bits=int(bits), group_size=asked.group_size, sym=True, data_type="int", act_bits=16)

    uniform = [(f"uniform w{bits:.0f}g{asked.group_size}", width(bits)) for bits in asked.uniform]
    choices = tuple(width(bits) for bits in asked.widths)
    mixed = [
        (f"AutoScheme, {bits:g} bits", AutoScheme(avg_bits=bits, options=choices, ignore_scale_zp_bits=True))
        for bits in asked.avg_bits
    ]
    return uniform + mixed


def main() -> None:
    asked = options()
    staged, tokenizer = load_staged(asked.model, place("auto", "auto")), load_tokenizer(asked.model)
    test = first_windows(tokenizer, asked.text, window_tokens=asked.window_tokens, windows=asked.text_windows)
    judge = Judge(staged, test)
    rows: list[Json] = [{"plan": "full precision", **judge.judge()}]
    for name, scheme in schemes(asked):
        began = time.monotonic()
        peer = rounded(asked, scheme)
        for path in staged.originals:
            weight = peer.get_submodule(path).weight.detach()
            staged.model.get_submodule(path).weight.data = weight.to(staged.own_weight(path))
        changed = sum(
            not torch.equal(staged.model.get_submodule(p).weight, staged.own_weight(p)) for p in staged.originals
        )
        row = {"plan": name, **judge.judge(), "linears_changed": changed, "seconds": round(time.monotonic() - began, 1)}
        staged.restore()
        rows.append({**row, "peak_memory_bytes": peak_memory()})
        print(rows[-1], flush=True)
        write_json(asked.out, {"title": TITLE, "command": own_command(), "rows": rows})


if __name__ == "__main__":
    main()
