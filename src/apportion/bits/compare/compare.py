"""All methods, one budget grid, one shared set of values, judged on held-out text."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from apportion.bits.apply import PACKAGES
from apportion.bits.compare.methods import METHODS, Choice, Context, require_methods
from apportion.bits.compare.optimum import Exhaustive, require_exhaustible
from apportion.bits.compare.page import write_page
from apportion.bits.compare.standings import Scoreboard, scoreboard, standings
from apportion.bits.game.game import MeasuredGame, Values, decode, encode, full_precision_nll
from apportion.bits.game.players import Assignment, uniform
from apportion.bits.game.samples import WINDOWS, Samples
from apportion.bits.game.sampling import take_samples
from apportion.bits.perplexity import first_windows
from apportion.bits.plan.budget import Budget, Costs, budget_from_bits
from apportion.bits.plan.sensitivity import require_alpha, require_estimable
from apportion.bits.quantize import Quantization, open_table, peak_memory
from apportion.bits.quantizer import Table
from apportion.bits.recipe import Sampling, at_least, require_applied
from apportion.core.artifact import (
    RUN,
    Json,
    finished,
    read_json,
    read_manifest,
    start,
    versions,
    write_json,
    write_manifest,
)
from apportion.core.errors import BudgetError, InputError, require_all
from apportion.core.log import AppendLog
from apportion.core.output import output_folder
from apportion.models.identity import source_identity, text_identity
from apportion.models.text import Windows, load_calibration

CURVE = 15  # evenly spaced budgets of the excess; with 16 equal players, k = 15..1 demoted ones
AVG_BITS = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is asked of `compare`, besides the samples' settings.

    Attributes:
        text: held-out text; text_windows: its first so many windows of the samples' window length.
        avg_bits: the grid of budgets. curve: also evaluate the 15 evenly spaced budgets of the excess.
        apply_rounding: the rounding under which plans are evaluated, if not the one they were made with.
        device, dtype: where everything is measured.
    """

    text: Path
    methods: tuple[str, ...] = tuple(METHODS)
    avg_bits: tuple[float, ...] = AVG_BITS
    text_windows: int = 128
    curve: bool = True
    apply_rounding: str | None = None
    alpha: float = 0.5
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False

    def check(self, sampling: Sampling) -> None:
        """Refuse what can be refused without the model, all at once.

        Raises:
            InputError: with every offending value.
        """
        require_all(
            lambda: require_methods(self.methods),
            *(partial(require_estimable, name, sampling.widths, sampling.permutations) for name in self.methods),
            lambda: require_file(self.text),
            lambda: at_least("--text-windows", self.text_windows, 1),
            lambda: require_alpha(self.alpha),
            lambda: require_grid(self.avg_bits, sampling.widths),
            lambda: require_applied(sampling.widths, sampling.rounding, self.apply_rounding or sampling.rounding),
        )


def require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"--text {path}: no such file", "give a held-out .txt or .jsonl file")


def require_grid(avg_bits: Sequence[float], widths: Sequence[int]) -> None:
    bad = [bits for bits in avg_bits if not widths[0] <= bits <= widths[-1]]
    if bad or not avg_bits:
        raise BudgetError(
            f"--avg-bits {','.join(map(str, avg_bits))}: expected numbers from {widths[0]} to {widths[-1]}",
            "choose budgets in this range or other --widths",
        )


def compare(model: str, out: Path, ask: Comparison, sampling: Sampling | None = None, *, resume: bool = False) -> Json:
    """Compare methods on one model.

    Args:
        out: folder of samples, logs, one file of plans per method, `result.json`, `table.md` and `compare.png`.
        resume: continue an interrupted run with the same model, texts and settings; nothing finished is redone.

    Returns:
        `result.json`: per method its perplexity at every budget with 95 % intervals, ties, excess and regret.

    Raises:
        ApportionError: see `core.errors`.
    """
    began = time.monotonic()
    sampling = sampling or Sampling()
    sampling.check()
    ask.check(sampling)
    asked = {"kind": "compare", "model_source": model, **asdict(ask), **asdict(sampling)}
    asked |= {"model": source_identity(model), "texts": [text_identity(sampling.calibration), text_identity(ask.text)]}
    with output_folder(Path(out), "compare", resume=resume, reads=[model]) as claimed:
        if finished(claimed, asked, resume=resume):
            read_manifest(claimed)
            return {**read_json(claimed / "result.json"), "out": str(claimed)}
        return compare_into(claimed, model, ask, sampling, asked, began)


def compare_into(out: Path, model: str, ask: Comparison, sampling: Sampling, asked: Json, began: float) -> Json:
    """The work of `compare`, in a folder that is held for it."""
    place = Quantization(device=ask.device, dtype=ask.dtype, trust_remote_code=ask.trust_remote_code)
    table = open_table(model, sampling, place)
    if "optimum" in ask.methods:
        require_exhaustible(len(table.players), sampling.widths)
    held_out = Windows(
        first_windows(
            table.tokenizer,
            ask.text,
            window_tokens=sampling.window_tokens,
            windows=ask.text_windows,
            option="--text-windows",
        ),
        str(ask.text),
    )
    judging = judging_table(table, ask)  # before the work, so that what this rounding refuses is refused now
    start(out, asked)
    samples = take_samples(table, out / "samples", resume=True)
    context = Context(
        table, table.bank(), load_calibration(out / "samples" / WINDOWS), samples, out, ask.alpha, sampling.seed
    )
    budgets = budgets_of(samples, ask)
    chosen = {name: chosen_by(name, context, budgets) for name in ask.methods}
    judged = judge(judging, held_out, wanted(samples, chosen), out)
    board = scoreboard(samples, budgets, len(ask.avg_bits), choices_of(chosen), judged.values, sampling.seed)
    result = result_of(model, ask, context, chosen, board, judged)
    result["seconds"] = time.monotonic() - began
    return finish(out, result, chosen)


def budgets_of(costs: Costs, ask: Comparison) -> list[Budget]:
    """The grid, then the curve."""
    low, high = costs.widths[0], costs.widths[-1]
    steps = range(1, CURVE + 1) if ask.curve else ()
    curve = [low + (high - low) * step / (CURVE + 1) for step in steps]
    return [budget_from_bits(costs, bits) for bits in (*ask.avg_bits, *curve)]


def chosen_by(name: str, context: Context, budgets: Sequence[Budget]) -> Json:
    """A method's plans and what they cost to find; read from its file if an earlier run finished it.

    `evaluations` counts the distinct coalitions that the method asked for beyond the shared samples, whether or not
    another method had them measured before, so that neither the order of the methods nor a kill changes it.
    """
    path = context.folder / "plans" / f"{name}.json"
    asked = {"budgets": [budget.player_bytes for budget in budgets], "alpha": context.alpha}
    if path.exists() and (saved := read_json(path))["asked"] == asked:
        return saved
    began = time.monotonic()
    context.asked.clear()
    choices = METHODS[name](context, budgets)
    found = {
        "method": name,
        "asked": asked,
        "plans": [[encode(item) for item in choice] for choice in choices],
        "evaluations": len(context.asked - context.samples.values.keys()),
        "seconds": time.monotonic() - began,
    }
    write_json(path, found)
    return found


def choices_of(chosen: Mapping[str, Json]) -> dict[str, list[Choice]]:
    """Assignments of every method's plans."""
    return {
        name: [tuple(decode(item) for item in choice) for choice in found["plans"]] for name, found in chosen.items()
    }


def wanted(samples: Samples, chosen: Mapping[str, Json]) -> list[Assignment]:
    """Every distinct plan once, and the uniform ones."""
    plans = {item for choices in choices_of(chosen).values() for choice in choices for item in choice}
    return sorted(plans | {uniform(samples.players, bits) for bits in samples.widths})


@dataclass(frozen=True)
class Judged:
    """NLL per held-out window of plans, and of the checkpoint's own weights."""

    values: Values
    full_precision: np.ndarray
    rounding: str
    settings: Json = field(default_factory=dict)


def judging_table(table: Table, ask: Comparison) -> Table:
    """The table with the rounding that plans are judged on.

    Raises:
        InputError: that rounding cannot hold this model or these widths.
    """
    rounding = ask.apply_rounding or table.sampling.rounding
    if rounding == table.sampling.rounding:
        return table
    return Table(table.staged, table.tokenizer, replace(table.sampling, rounding=rounding))


def judge(table: Table, held_out: Windows, plans: list[Assignment], out: Path) -> Judged:
    """Evaluate every plan on the held-out text, each once, sharing prefixes, appended to `text.log`."""
    settings = table.settings(held_out)
    with AppendLog(out / "text.log", settings, resume=True) as log:
        game = MeasuredGame(table.bank(), held_out, log)
        game.values(plans)
    return Judged(game.known, full_precision_nll(table.staged, held_out), table.rounding.name, settings)


def result_of(
    model: str, ask: Comparison, context: Context, chosen: Mapping[str, Json], board: Scoreboard, judged: Judged
) -> Json:
    """What is saved and printed."""
    samples = context.samples
    exhaustive = context.exhaustive if "optimum" in ask.methods else None
    rows = standings(board, exhaustive)
    for name, row in rows.items():
        row["evaluations"] = chosen[name]["evaluations"]
        row["seconds"] = chosen[name]["seconds"]
    return {
        "model": Path(model).name,
        "settings": samples.settings,
        "text": judged.settings["calibration_source"],
        "text_digest": judged.settings["calibration"],
        "text_windows": ask.text_windows,
        "window_tokens": context.table.sampling.window_tokens,
        "calibration_windows": context.table.sampling.windows,
        "permutations": context.table.sampling.permutations,
        "alpha": ask.alpha,
        "seed": context.seed,
        "rounding": samples.settings["rounding"],
        "apply_rounding": judged.rounding,
        "avg_bits": list(ask.avg_bits),
        "perplexity_fp": float(np.exp(judged.full_precision.mean())),
        "perplexity_uniform": {
            str(bits): float(np.exp(judged.values[uniform(samples.players, bits)].mean())) for bits in samples.widths
        },
        "samples": {**samples.counts, "coalitions": len(samples.values)},
        "distinct_plans": len(judged.values),
        "optimum": summary(exhaustive) if exhaustive is not None else None,
        "methods": rows,
        "peak_memory_bytes": peak_memory(),
        "versions": versions(*PACKAGES),
    }


def summary(exhaustive: Exhaustive) -> Json:
    """The best plan and its calibration NLL for each number of demoted players."""
    best = exhaustive.best_by_demoted()
    return {"best_by_demoted": [{"plan": encode(item), "nll": exhaustive.value(item)} for item in best]}


def finish(out: Path, result: Json, chosen: Mapping[str, Json]) -> Json:
    """Write result, page and plot and, last, the manifest."""
    write_json(out / "result.json", result)
    pages = write_page(out, result)
    files = [RUN, "result.json", *pages, *(f"plans/{name}.json" for name in chosen)]
    write_manifest(out, {"kind": "comparison", "model": result["settings"]["model"]}, files)
    return {**result, "out": str(out)}
