"""Tokens a second of a folder that we wrote, loaded here, beside its full-precision source, in one process by turns.

python benchmarks/decoded_speed.py MODEL --out docs/results/decoded_speed.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from command_line import own_command

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    from apportion.core.device import place
    from apportion.models.load import load_model

    placement = place(asked.device)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "quantized"
        written(asked.model, folder, asked.device)
        began = time.monotonic()
        ours = load_model(str(folder), placement).model
        seconds = time.monotonic() - began
        full = load_model(asked.model, placement).model
        rates: dict[str, list[float]] = {"full": [], "ours": []}
        for turn in range(TURNS + 1):
            for name, model in (("full", full), ("ours", ours)):
                found = rate(model)
                if turn:  # the first turn warms up
                    rates[name].append(found)
    best = {name: max(values) for name, values in rates.items()}
    saved = {
        "command": own_command(),
        "model": Path(asked.model).name,
        "device": placement.device,
        "dtype": placement.dtype,
        "tokens": TOKENS,
        "tokens_per_second": best,
        "share": best["ours"] / best["full"],
        "load_seconds": seconds,
    }
    asked.out.write_text(json.dumps(saved, indent=1) + "\n")
    print(json.dumps(saved, indent=1))


if __name__ == "__main__":
    main()
