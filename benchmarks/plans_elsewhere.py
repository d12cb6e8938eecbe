"""Plans of a saved comparison on three texts: what methods chose on, other windows of it, and the held-out text.

Where `auto` is behind a score of single blocks on the held-out text, this tells whether the search missed a better plan
(then it is behind on the calibration text too) or whether the two texts prefer different plans.
"""

import argparse
from pathlib import Path

import numpy as np
from command_line import own_command
from torch import Tensor

from apportion.bits.finalists import judges_for
from apportion.bits.game import decode
from apportion.bits.perplexity import first_windows
from apportion.bits.quantize import open_model
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.request import QuantizeRequest
from apportion.core.artifact import Json, read_json, write_json
from apportion.core.bootstrap import Bootstrap
from apportion.core.errors import InputError
from apportion.core.progress import progress

OWN, UNSEEN, HELD_OUT = "calibration", "other windows of it", "held-out text"


def plans_of(result: Json, bits: float, methods: list[str]) -> dict[str, str]:
    """The plan of every method at a budget."""
    place = result["avg_bits"].index(bits)
    return {name: result["methods"][name]["budgets"][place]["plans"][0] for name in methods}


def texts_for(quantizer: Quantizer, result: Json, text: Path, windows: int) -> dict[str, Tensor]:
    """The three texts.

    Raises:
        InputError: the calibration windows are not those of the result.
    """
    own = quantizer.chosen(quantizer.recipe.windows)
    if own.digest != result["settings"]["calibration"]:
        raise InputError("the calibration windows are not those that the result was made from")
    length = quantizer.recipe.window_tokens
    held = first_windows(quantizer.tokenizer, text, window_tokens=length, windows=windows, option="--windows", bos=None)
    return {OWN: own.windows, UNSEEN: judges_for(quantizer, own).windows.windows[:windows], HELD_OUT: held}


def losses(quantizer: Quantizer, plans: list[str], texts: dict[str, Tensor], kept: Path) -> dict[str, list[float]]:
    """Loss of every window, nats a token, by plan and text; kept in a file as it comes."""
    found: dict[str, list[float]] = read_json(kept) if kept.exists() else {}
    for plan in plans:
        wanted = {name: windows for name, windows in texts.items() if f"{plan} {name}" not in found}
        if not wanted:
            continue
        weights = quantizer.written(decode(plan), tuned=False)
        with quantizer.staged.in_place(weights.packed):
            for name, windows in wanted.items():
                with progress(name, len(windows), "windows") as advance:
                    found[f"{plan} {name}"] = quantizer.staged.window_nll(windows, advance).tolist()
                write_json(kept, found)
    return found


def rows_of(plans: dict[str, str], texts: dict[str, Tensor], found: dict[str, list[float]]) -> list[Json]:
    """How far the first method is behind each other one on each text, paired over windows."""
    (first, own), *others = plans.items()
    rows = []
    for name, plan in others:
        for text, windows in texts.items():
            behind = np.asarray(found[f"{own} {text}"]) - np.asarray(found[f"{plan} {text}"])
            interval = Bootstrap(len(behind), 0).interval(behind)
            rows.append(
                {
                    "methods": [first, name], "text": text, "windows": len(windows),
                    "nll": [float(np.mean(found[f"{item} {text}"])) for item in (own, plan)],
                    "behind": {"mean": interval.mean, "low": interval.low, "high": interval.high},
                }
            )  # fmt: skip
    return rows


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("model")
    ask.add_argument("--result", type=Path, required=True, help="of a comparison of this model, docs/results/compare_*")
    ask.add_argument("--avg-bits", type=float, required=True)
    ask.add_argument("--methods", default="auto,one-at-a-time", help="the first is told beside each other")
    ask.add_argument("--calibration", type=Path, required=True)
    ask.add_argument("--text", type=Path, required=True)
    ask.add_argument("--windows", type=int, default=64, help="of the two texts that nothing was chosen on")
    ask.add_argument("--device", default="auto")
    ask.add_argument("--dtype", default="bfloat16")
    ask.add_argument("--work", type=Path, required=True, help="file of losses, taken up where it is there")
    ask.add_argument("--out", type=Path, required=True)
    asked = ask.parse_args()
    result = read_json(asked.result)
    recipe = Recipe(
        calibration=asked.calibration, widths=tuple(result["settings"]["widths"]), players="blocks", labels="text",
        rounding=result["rounding"], windows=result["calibration_windows"], window_tokens=result["window_tokens"],
    )  # fmt: skip
    quantizer = open_model(asked.model, recipe, QuantizeRequest(device=asked.device, dtype=asked.dtype))
    plans = plans_of(result, asked.avg_bits, asked.methods.split(","))
    texts = texts_for(quantizer, result, asked.text, asked.windows)
    found = losses(quantizer, list(dict.fromkeys(plans.values())), texts, asked.work)
    write_json(
        asked.out,
        {
            "title": f"Plans of {result['model']} ({result['rounding']}) at {asked.avg_bits:g} bits on three texts",
            "command": own_command(), "of": asked.result.name, "plans": plans, "avg_bits": asked.avg_bits,
            "device": quantizer.staged.placement.device, "dtype": quantizer.staged.placement.dtype,
            "rows": rows_of(plans, texts, found),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
