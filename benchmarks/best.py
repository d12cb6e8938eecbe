"""`auto` with more widths and finer players on a reference model, judged on held-out text, over six budgets.

One search serves all budgets. Where written weights are not the sampled ones (gptq, or tuned scales), the finalists
of each budget and the uniform plans are written by worker processes and judged on calibration windows that neither
search nor rounding has seen; the best there is kept, and its perplexity on the held-out text is reported. Nothing is
chosen on the held-out text. Plans of other methods, from a result of compare, are written the same way beside them.

    python benchmarks/best.py llama-mini --rounding gptq --calibration c4-sample.jsonl --text wikitext2.txt
        --work work --out docs/results
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from command_line import own_command
from saved_plans import names_of
from torch import Tensor

from apportion.bits.compare.methods import ISOLATED
from apportion.bits.finalists import Candidate, finalists, judges_for
from apportion.bits.game import Assignment, Costs, decode, encode, sample
from apportion.bits.game.samples import WINDOWS
from apportion.bits.offers import Offer
from apportion.bits.perplexity import first_windows
from apportion.bits.plan import Budget, budget_from_bits, search
from apportion.bits.quantize import QuantizeRequest, open_model
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import LINEARS, Recipe
from apportion.bits.rounding import Moments, rounding_named, tune
from apportion.core.artifact import write_json
from apportion.core.bootstrap import Bootstrap
from apportion.formats import Packed, Width
from apportion.models.staged import StagedModel
from apportion.models.text import Windows, load_calibration

BUDGETS = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--players", default="linears")
    parser.add_argument("--widths", default=None, help="with commas; 2,3,4 as far as the rounding has them")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--rounding-windows", type=int, default=128)
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--finalists", type=int, default=2)
    parser.add_argument("--tune", type=int, default=0, help="steps; tuned plans are reported beside the untuned")
    parser.add_argument("--rivals", type=Path, help="a result of compare: its plans, written the same way")
    parser.add_argument("--rival-methods", default="coopq,best-isolated")
    parser.add_argument("--round-on", default=None, help="device of gptq's loops, if not the model's (launches cost)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--written", type=Path, help="worker: measure the plans that this file lists")
    return parser.parse_args()


def quantizer_of(asked: argparse.Namespace) -> Quantizer:
    supported = rounding_named(asked.rounding).format.bits
    own = tuple(bits for bits in LINEARS if bits in supported)
    recipe = Recipe(
        widths=tuple(asked.widths.split(",")) if asked.widths else own,
        players=asked.players,
        rounding=asked.rounding,
        group_size=asked.group_size,
        calibration=asked.calibration,
        windows=asked.windows,
        window_tokens=asked.window_tokens,
        permutations=0,
        rounding_windows=asked.rounding_windows,
    )
    quantizer = open_model(asked.model, recipe, QuantizeRequest(dtype=asked.dtype))
    if asked.round_on:
        quantizer.rounding = quantizer.applied = Elsewhere(quantizer.rounding, asked.round_on)
    return quantizer


def main() -> None:
    asked = options()
    if asked.written is not None:
        work_off(asked)
        return
    began = time.monotonic()
    name = f"{Path(asked.model).name}_{asked.rounding}"
    folder = asked.work / name
    quantizer = quantizer_of(asked)
    costs = quantizer.costs
    budgets = [budget_from_bits(costs, bits) for bits in BUDGETS]
    with quantizer.game(folder / "samples", resume=True) as game:
        samples = sample(game, folder / "samples", quantizer.orders())
        seed = quantizer.recipe.seed
        found, _ = search(game, samples, budgets, evaluations=asked.evaluations, seed=seed)
    searched_s = time.monotonic() - began
    print(f"{name}: searched in {searched_s:.0f} s", flush=True)
    levels = [costs.uniform(column) for column in range(len(costs.widths))]
    rewrites = quantizer.rewrites or asked.tune > 0
    few = asked.finalists if rewrites else 1
    offers = [Offer(budget, costs.fixed_bytes) for budget in budgets]
    candidates = [Candidate(*pair) for pair in zip(offers, found, strict=True)]
    own = {item for one in candidates for _, item in finalists([one], few)} | set(levels)
    rivals = rival_plans(asked, quantizer)
    plans = sorted(own | {item for choices in rivals.values() for item in choices})
    measured = (
        written(asked, folder, [encode(item) for item in plans]) if rewrites else sampled(asked, quantizer, plans)
    )
    if not quantizer.rewrites:  # what is written is what was sampled: the search's own values choose
        for item in own:
            measured[encode(item)]["untuned"]["judged"] = float(game.known[item].mean())
    common = {
        "command": own_command(),
        "model": Path(asked.model).name,
        "rounding": asked.rounding,
        "settings": samples.settings,
        "evaluations": asked.evaluations,
        "finalists": asked.finalists if rewrites else None,
        "tune_windows": quantizer.recipe.tune_windows if asked.tune else None,
        "search_seconds": searched_s,
    }
    for kind in ("untuned", "tuned") if asked.tune else ("untuned",):
        values = {decode(plan): found[kind] for plan, found in measured.items()}
        result = common | {"tune": asked.tune if kind == "tuned" else 0} | report(costs, budgets, own, values, rivals)
        result["seconds"] = time.monotonic() - began
        suffix = "_tuned" if kind == "tuned" else ""
        write_json(asked.out / f"best_{name}{suffix}.json", result)
        show(f"{name}{suffix}", result)


def rival_plans(asked: argparse.Namespace, quantizer: Quantizer) -> dict[str, list[Assignment]]:
    """Plans of other methods, one for each budget, each block's width given to the players inside it."""
    if asked.rivals is None:
        return {}
    compared = json.loads(asked.rivals.read_text())
    expected = {"model": quantizer.staged.digest, "rounding": asked.rounding, "players": "blocks"}
    found_settings = {name: compared["settings"][name] for name in expected}
    if found_settings != expected or compared["avg_bits"] != list(BUDGETS):
        raise SystemExit(f"{asked.rivals}: made with {found_settings}, expected {expected} and the six budgets")
    column = {width.name: index for index, width in enumerate(quantizer.costs.widths)}
    found = {}
    for method in asked.rival_methods.split(","):
        plans = [rival_cell(compared, method, place)["plans"][0] for place in range(len(BUDGETS))]
        blocks = [names_of(plan, compared["settings"]) for plan in plans]
        if missing := sorted({name for names in blocks for name in names} - column.keys()):
            raise SystemExit(f"{asked.rivals}: its {method} has widths {missing}, expected only {list(column)}")
        found[method] = [tuple(column[names[player.block]] for player in quantizer.costs.players) for names in blocks]
    return found


def rival_cell(compared: dict[str, Any], method: str, place: int) -> dict[str, Any]:
    """A method's row at one budget; `best-isolated`: the isolated baseline that `compare` has best there, held out."""
    cells = {name: row["budgets"][place] for name, row in compared["methods"].items()}
    if method == "best-isolated":
        return min((cells[name] for name in ISOLATED), key=lambda cell: cell["perplexity"])
    return cells[method]


Measured = dict[str, Any]


def report(
    costs: Costs,
    budgets: list[Budget],
    own: set[Assignment],
    values: dict[Assignment, Measured],
    rivals: dict[str, list[Assignment]],
) -> dict[str, Any]:
    """The plan kept for each budget, and how rivals do with the same rounding."""
    nll = {plan: np.asarray(item["text"]) for plan, item in values.items()}
    high = float(nll[costs.uniform(-1)].mean())
    rows, kept = [], []
    for bits, budget in zip(BUDGETS, budgets, strict=True):
        fits = [item for item in own if costs.spent(item) <= budget.player_bytes]
        kept.append(min(fits, key=lambda item: values[item]["judged"]))
        around = Bootstrap(len(nll[kept[-1]]), 0).interval(nll[kept[-1]])
        rows.append(
            {
                "budget": bits,
                "avg_bits": costs.average_bits(kept[-1]),
                "perplexity": math.exp(nll[kept[-1]].mean()),
                "interval": [math.exp(around.low), math.exp(around.high)],
                "judged": float(values[kept[-1]]["judged"]),
                "uniform": len(set(kept[-1])) == 1,
                "assignment": encode(kept[-1]),
            }
        )
    tried = [{"assignment": encode(item), "judged": values[item]["judged"], "perplexity": math.exp(nll[item].mean())}
             for item in sorted(own)]  # fmt: skip
    return {
        "budgets": rows,
        "uniform": {
            width.name: math.exp(nll[costs.uniform(column)].mean()) for column, width in enumerate(costs.widths)
        },
        "excess_over_six": float(np.mean([math.log(row["perplexity"]) for row in rows]) - high),
        "rivals": {
            method: {
                "perplexity": [math.exp(nll[item].mean()) for item in choices],
                "excess_over_six": float(np.mean([nll[item].mean() for item in choices]) - high),
                "auto_behind": [
                    asdict(Bootstrap(len(nll[item]), 0).interval(nll[ours] - nll[item]))
                    for ours, item in zip(kept, choices, strict=True)
                ],
            }
            for method, choices in rivals.items()
        },
        "tried": tried,
    }


def show(name: str, result: dict[str, Any]) -> None:
    line = " ".join(f"{row['perplexity']:.2f}{'u' if row['uniform'] else ''}" for row in result["budgets"])
    levels = " / ".join(f"{value:.2f}" for value in result["uniform"].values())
    print(f"{name}: {line}  excess {result['excess_over_six']:.4f}  uniform {levels}", flush=True)
    for method, row in result["rivals"].items():
        line = " ".join(f"{value:.2f}" for value in row["perplexity"])
        ratio = result["excess_over_six"] / row["excess_over_six"]
        behind = max(item["low"] for item in row["auto_behind"])
        print(f"  {method:12} {line}  excess {row['excess_over_six']:.4f}  auto/it {ratio:.3f}  worst low {behind:.4f}")


def sampled(asked: argparse.Namespace, quantizer: Quantizer, plans: list[Assignment]) -> dict[str, Measured]:
    """NLL per held-out window of plans on the weights that were sampled."""
    bank, windows = quantizer.bank, held_out(asked, quantizer)
    found = {}
    for plan in plans:
        bank.put_all(plan)
        found[encode(plan)] = {"untuned": {"text": quantizer.staged.window_nll(windows).tolist()}}
    quantizer.staged.restore()
    return found


def held_out(asked: argparse.Namespace, quantizer: Quantizer) -> Tensor:
    length, count = asked.window_tokens, asked.text_windows
    return first_windows(quantizer.tokenizer, asked.text, window_tokens=length, windows=count)


def written(asked: argparse.Namespace, folder: Path, plans: list[str]) -> dict[str, Measured]:
    """Plans as written, by worker processes: judged on unseen calibration windows, and NLL per held-out window.

    What an earlier run with the same folder measured is not measured again.
    """
    found: dict[str, Measured] = {}
    jobs = sorted(folder.glob("written*.json"))
    for job in jobs:
        earlier = json.loads(job.read_text())
        if earlier["asked"] != job_settings(asked):
            raise SystemExit(f"{job}: made with {earlier['asked']}; use another --work")
        found |= earlier.get("found", {})
    missing = [plan for plan in plans if plan not in found]
    processes = []
    for index, share in enumerate(missing[start :: asked.workers] for start in range(asked.workers)):
        if share:
            job = folder / f"written{len(jobs) + index}.json"
            write_json(job, {"asked": job_settings(asked), "plans": share})
            command, one_thread = [sys.executable, *sys.argv, "--written", str(job)], {"OMP_NUM_THREADS": "1"}
            processes.append((job, subprocess.Popen(command, env=os.environ | one_thread)))
    failed = []
    for job, process in processes:
        if process.wait() != 0:
            failed.append(str(job))
        found |= json.loads(job.read_text()).get("found", {})
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; run again with the same --work")
    return {plan: found[plan] for plan in plans}


def job_settings(asked: argparse.Namespace) -> dict[str, Any]:
    """What losses of written plans depend on besides the search's own settings, which its log keeps."""
    names = ("tune", "text", "text_windows", "rounding_windows", "windows", "window_tokens", "group_size", "dtype")
    return {name: str(getattr(asked, name)) for name in names}


@dataclass(frozen=True)
class Elsewhere:
    """A rounding whose loops run on another device than the model: thousands of small steps."""

    own: Any
    device: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def round(self, weight: Tensor, width: Width, moments: Moments | None) -> Packed:
        cross = moments.cross.to(self.device) if moments.cross is not None else None
        there = Moments(moments.hessian.to(self.device), cross, moments.tokens)
        return self.own.round(weight.to(self.device), width, there)


def work_off(asked: argparse.Namespace) -> None:
    """Write and measure the plans of one job file, saving after each."""
    quantizer = quantizer_of(asked)
    staged = quantizer.staged
    folder = asked.work / f"{Path(asked.model).name}_{asked.rounding}"
    fitted = Quantizer(staged, quantizer.tokenizer, replace(quantizer.recipe, tune=asked.tune))
    judges = judges_for(fitted, load_calibration(folder / "samples" / WINDOWS)).windows
    text = held_out(asked, quantizer)
    if not quantizer.rounding.needs_hessian:
        quantizer.rounded()  # once for all plans
    job = json.loads(asked.written.read_text())
    found = job.get("found", {})
    for plan in (plan for plan in job["plans"] if plan not in found):
        began = time.monotonic()
        packed = quantizer.written(decode(plan)).packed
        found[plan] = {"untuned": losses(staged, packed, judges, text), "seconds": time.monotonic() - began}
        if asked.tune:
            began = time.monotonic()
            tuned = tune(staged, packed, fitted.lesson)
            told = {"asked": asked.tune, "steps": tuned.steps, "before": tuned.before, "after": tuned.after}
            found[plan]["tuned"] = losses(staged, tuned.packed, judges, text) | {"tuning": told}
            found[plan]["tuning_seconds"] = time.monotonic() - began
        write_json(asked.written, {**job, "found": found})


def losses(staged: StagedModel, packed: Mapping[str, Packed], judges: Windows, text: Tensor) -> Measured:
    """Loss on the judging windows, and NLL per held-out window."""
    with staged.in_place(packed):
        judged = float(staged.window_nll(judges.windows).mean())
        return {"judged": judged, "text": staged.window_nll(text).tolist()}


if __name__ == "__main__":
    main()
