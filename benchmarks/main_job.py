"""The main job on a real model: one command, and the plain alternative (one width, same rounding) beside it.

    python benchmarks/main_job.py MODEL --calibration c4-sample.jsonl --text wikitext2-test-raw.txt --avg-bits 3
        --work WORK --out docs/results [options of apportion quantize]

What `apportion quantize` writes is loaded from its folder and compared with full precision by `apportion divergence`;
so is a folder of every uniform width with as many bits or fewer, written by `apportion apply` with the same rounding
(`--no-uniform`: none; what uniform plans came to on the windows kept aside is in the result).
"""

import argparse
from dataclasses import replace
from pathlib import Path

from command_line import own_command, shown

from apportion.bits.apply import apply
from apportion.bits.divergence.run import Measurement
from apportion.bits.divergence.run import compare as diverge
from apportion.bits.plan import Plan, plan_from
from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.bits.recipe import Recipe
from apportion.core.artifact import Json, read_json, write_json

KEPT = (
    "avg_bits", "stored_bits", "bytes", "labels", "nll_fp", "nll_plan", "kl_plan", "nll_judged", "kl_judged",
    "judged_on", "source", "choice", "tuned", "uniform",
    "evaluations", "block_forwards", "naive_block_forwards", "seconds", "peak_memory_bytes", "apply_rounding",
    "rounding", "servers", "execution",
)  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", default="", help="what the model is called; the folder's name without it")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--avg-bits", type=float, default=3.0)
    parser.add_argument("--rounding")
    parser.add_argument("--tune", type=int)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--rounding-windows", type=int, default=128)
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-uniform", action="store_true", help="write no folder of one width beside it")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def recipe_of(asked: argparse.Namespace) -> Recipe:
    return Recipe(
        calibration=asked.calibration,
        rounding=asked.rounding,
        tune=asked.tune,
        windows=asked.windows,
        window_tokens=asked.window_tokens,
        rounding_windows=asked.rounding_windows,
    )


def command_of(asked: argparse.Namespace) -> str:
    """The command that a user would type."""
    words: list[object] = ["apportion", "quantize", asked.model, "--avg-bits", f"{asked.avg_bits:g}"]
    words += ["--calibration", asked.calibration, "--windows", asked.windows, "--window-tokens", asked.window_tokens]
    words += ["--rounding-windows", asked.rounding_windows, "--evaluations", asked.evaluations]
    words += ["--finalists", asked.finalists, *(["--rounding", asked.rounding] if asked.rounding else [])]
    words += ["--tune", asked.tune] if asked.tune is not None else []
    return shown([*words, "--out", f"{asked.name or asked.model.name}-{asked.avg_bits:g}bit"])


def title_of(name: str, asked: argparse.Namespace) -> str:
    """What the file holds."""
    beside = "" if asked.no_uniform else ", and one width for all at the same rounding"
    return f"{name} to {asked.avg_bits:g} bits: the command{beside}"


def uniform_plans(plan: Plan) -> dict[str, Plan]:
    """Every player at one width, where that takes no more bytes than the plan may."""
    found = {}
    for column, width in enumerate(plan.costs.widths):
        level = plan.costs.uniform(column)
        if plan.costs.spent(level) <= plan.budget_bytes and level != plan.assignment:
            found[width.name] = replace(plan, assignment=level, avg_bits=plan.costs.average_bits(level), tried=())
    return found


def main() -> None:
    asked = options()
    name = asked.name or asked.model.name
    ask = QuantizeRequest(
        avg_bits=asked.avg_bits, evaluations=asked.evaluations, finalists=asked.finalists, device=asked.device
    )
    recipe, out = recipe_of(asked), asked.work / f"{name}-{asked.avg_bits:g}"
    result = quantize(str(asked.model), out, ask, recipe, resume=out.exists())
    plan = plan_from(read_json(out / "plan.json"))
    folders = {"auto": out}
    for width, level in ({} if asked.no_uniform else uniform_plans(plan)).items():
        folder = asked.work / f"{name}-{width}"
        text = replace(recipe, tune=(result["tuned"] or {}).get("asked", 0))
        rounding = result["apply_rounding"]
        apply(
            str(asked.model), level, folder, rounding=rounding, recipe=text, device=asked.device, resume=folder.exists()
        )
        folders[f"uniform {width}"] = folder
    measure = Measurement(
        text=asked.text, window_tokens=asked.text_tokens, windows=asked.text_windows, device=asked.device
    )
    found = diverge(str(asked.model), [str(folder) for folder in folders.values()], measure)
    weights = sum(path.stat().st_size for path in asked.model.glob("*.safetensors"))
    rows: list[Json] = []
    for (label, folder), candidate in zip(folders.items(), found["candidates"], strict=True):
        own = plan if label == "auto" else uniform_plans(plan)[label.removeprefix("uniform ")]
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        stored = own.costs.stored_bits(own.assignment)
        rows.append({"plan": label, "file_bytes": size, "bits_with_scales": stored, "texts": candidate["texts"]})
    saved = {
        "title": title_of(name, asked),
        "command": own_command(),
        "quantize": command_of(asked),
        "model": name,
        "model_bytes": weights,
        "result": {key: result[key] for key in KEPT if key in result},
        "rows": rows,
    }
    write_json(asked.out / f"main_job_{name}.json", saved)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
