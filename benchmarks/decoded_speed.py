"""Tokens a second of a folder that we wrote, loaded here, beside its full-precision source, in one process by turns.

python benchmarks/decoded_speed.py NAME=MODEL [NAME=MODEL ...] --out docs/results/decoded_speed.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from command_line import own_command

Json = dict[str, Any]
TOKENS, TURNS = 128, 5


def rate(model: Any) -> float:
    """Tokens a second of one forward pass."""
    import torch

    ids = torch.arange(TOKENS, device=model.device)[None] + 10
    with torch.inference_mode():
        began = time.monotonic()
        model(input_ids=ids, use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
    return TOKENS / (time.monotonic() - began)


def written(model: str, out: Path, device: str) -> None:
    """The model's linears at 4 bits, nearest without its search being of interest here."""
    from apportion.bits.checkpoint import write_checkpoint
    from apportion.bits.rounding import round_all, rounding_named
    from apportion.core.device import place
    from apportion.formats import COMPRESSED_TENSORS, grid_width
    from apportion.models.load import load_full

    staged, tokenizer = load_full(model, place(device))
    width = grid_width(4, 64)
    both = round_all(staged, rounding_named("nearest"), (width,))
    packed = {path: both[path, width] for path in staged.originals}
    out.mkdir()
    write_checkpoint(out, staged, dict.fromkeys(staged.originals, width), packed, tokenizer, COMPRESSED_TENSORS)


def row_of(name: str, model: str, device: str, dtype: str) -> Json:
    """Both speeds of one model, the best of TURNS each."""
    from apportion.core.device import place
    from apportion.models.load import load_model

    placement = place(device, dtype)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "quantized"
        written(model, folder, device)
        began = time.monotonic()
        ours = load_model(str(folder), placement).model
        seconds = time.monotonic() - began
        full = load_model(model, placement).model
        rates: dict[str, list[float]] = {"full": [], "ours": []}
        for turn in range(TURNS + 1):
            for which, loaded in (("full", full), ("ours", ours)):
                found = rate(loaded)
                if turn:  # the first turn warms up
                    rates[which].append(found)
    best = {which: max(values) for which, values in rates.items()}
    return {
        "model": name,
        "device": placement.device,
        "dtype": placement.dtype,
        "tokens_s_full": best["full"],
        "tokens_s_ours": best["ours"],
        "share": best["ours"] / best["full"],
        "load_s_ours": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    saved = {
        "title": f"A folder that we wrote, loaded decoded, beside full precision: one pass of {TOKENS} tokens",
        "command": own_command(),
        "rows": [row_of(*one.split("=", 1), asked.device, asked.dtype) for one in asked.models],
    }
    asked.out.write_text(json.dumps(saved, indent=1) + "\n")
    print(json.dumps(saved, indent=1))


if __name__ == "__main__":
    main()
