"""Perplexity of every rounding at every uniform width, and of each step of ours.

    python benchmarks/rounding.py MODEL --text TEXT --calibration TEXT --out docs/results/rounding.json

Every cell is saved as it comes; started again, finished cells are kept. `gptq-loop` is the plain loop with the
searched scale, `gptq-refined` adds the refinement of codes and scales, `gptq` the correction of the target too.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apportion.bits.calibration import calibrate
from apportion.bits.evaluate import perplexity
from apportion.bits.model import StagedModel, load_model, load_tokenizer
from apportion.bits.rounding import ROUNDINGS, Rounding
from apportion.bits.rounding.gptq import Gptq
from apportion.bits.weights import round_plan
from apportion.core.artifact import Json, read_json, versions, write_json
from apportion.core.device import place

STEPS: Mapping[str, Callable[[], Rounding]] = {
    "gptq-loop": lambda: Gptq(dampings=(0.01,), rounds=0, correction=0.0),
    "gptq-refined": lambda: Gptq(correction=0.0),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--roundings", default="nearest,quanto,hqq,gptq-loop,gptq-refined,gptq")
    parser.add_argument("--widths", default="2,3,4")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--calibration-windows", type=int, default=128)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    staged, tokenizer = load_model(asked.model, place(asked.device, "float32")), load_tokenizer(asked.model)
    windows = calibrate(
        asked.calibration,
        tokenizer,
        windows=asked.calibration_windows,
        window_tokens=asked.window_tokens,
        seed=asked.seed,
    ).windows

    def measure() -> float:
        size = {"window_tokens": asked.window_tokens, "windows": asked.text_windows}
        return perplexity(staged, tokenizer, asked.text, **size).perplexity

    settings = {key: str(value) for key, value in vars(asked).items() if key not in ("out", "roundings", "widths")}
    result: Json = {"command": "python " + " ".join(sys.argv), "settings": settings, "cells": []}
    if asked.out.exists() and (saved := read_json(asked.out))["settings"] == settings:
        result["cells"] = saved["cells"]
    done = {(cell["rounding"], cell["bits"]) for cell in result["cells"]}
    result["full_precision"], result["versions"] = measure(), versions("torch", "transformers", "hqq", "optimum-quanto")
    for name in asked.roundings.split(","):
        rounding = {**ROUNDINGS, **STEPS}[name]()
        for bits in map(int, asked.widths.split(",")):
            if bits not in rounding.bits or (name, bits) in done:
                continue
            result["cells"].append(
                {"rounding": name, "bits": bits, **cell(staged, rounding, bits, asked, windows, measure)}
            )
            print(result["cells"][-1], flush=True)
            write_json(asked.out, result)


def cell(
    staged: StagedModel,
    rounding: Rounding,
    bits: int,
    asked: argparse.Namespace,
    windows: Any,
    measure: Callable[[], float],
) -> Json:
    """Round the whole model to one width and measure it."""
    began = time.monotonic()
    rounded = round_plan(staged, rounding, dict.fromkeys(staged.originals, bits), asked.group_size, windows)
    seconds = time.monotonic() - began
    for path, item in rounded.items():
        weight = item.dequantize(staged.compute_dtype).to(staged.placement.device)
        staged.model.get_submodule(path).weight.data = weight
    found = measure()
    staged.restore()
    return {"perplexity": found, "rounding_seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
