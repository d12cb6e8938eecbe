"""All methods, one budget grid, one shared set of values, judged on held-out text."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from apportion.bits.compare.elsewhere import Elsewhere
from apportion.bits.compare.methods import DEFAULT, METHODS, Choice, Context, require_methods
from apportion.bits.compare.optimum import Exhaustive, require_exhaustible
from apportion.bits.compare.page import write_page
from apportion.bits.compare.standings import scoreboard, standings
from apportion.bits.game import (
    Assignment,
    Costs,
    MeasuredGame,
    Samples,
    Values,
    decode,
    encode,
    full_precision_nll,
    sample,
)
from apportion.bits.perplexity import first_windows
from apportion.bits.plan import Budget, bits_range, budget_from_bits, require_alpha, require_estimable
from apportion.bits.quantize import PACKAGES, QuantizeRequest, open_model
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
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
from apportion.core.device import peak_memory
from apportion.core.errors import BudgetError, InputError, at_least, require_all
from apportion.core.log import AppendLog
from apportion.core.output import SAMPLE_FOLDER, output_folder
from apportion.formats import Width
from apportion.models.identity import run_identity, text_identity
from apportion.models.mixture import identity_of
from apportion.models.text import Windows, prefix_of

CURVE = 15  # evenly spaced budgets of the excess; with 16 equal players, k = 15..1 demoted ones
AVG_BITS = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5)


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """What is asked of `compare`, besides the recipe.

    Attributes:
        text: held-out text; text_windows: its first so many windows of the recipe's window length.
        methods: by name; all but the exhaustive optimum where nothing is said.
        avg_bits: the grid of budgets. curve: also evaluate the 15 evenly spaced budgets of the excess.
        device, dtype: where everything is measured.
    """

    text: Path
    methods: tuple[str, ...] = DEFAULT
    avg_bits: tuple[float, ...] = AVG_BITS
    text_windows: int = 128
    curve: bool = True
    alpha: float = 0.5
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False

    def check(self, recipe: Recipe) -> None:
        """Refuse what can be refused without the model, all at once.

        Raises:
            InputError: with every offending value.
        """
        widths = recipe.grid()
        require_all(
            lambda: require_methods(self.methods),
            *(partial(require_estimable, name, widths, recipe.permutations) for name in self.methods),
            lambda: require_file(self.text),
            lambda: at_least("--text-windows", self.text_windows, 1),
            lambda: require_alpha(self.alpha),
            lambda: require_grid(self.avg_bits, widths),
        )


def require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"--text {path}: no such file", "give a held-out .txt or .jsonl file")


def require_grid(avg_bits: Sequence[float], widths: Sequence[Width]) -> None:
    low, high = widths[0].bits, max(width.bits for width in widths)  # the highest width may have the fewer bits
    bad = [bits for bits in avg_bits if not low <= bits <= high]
    if bad or not avg_bits:
        raise BudgetError(
            f"--avg-bits {','.join(map(str, avg_bits))}: expected numbers from {low:g} to {high:g}",
            "choose budgets in this range or other --widths",
        )


def compare(model: str, out: Path, ask: CompareRequest, recipe: Recipe | None = None, *, resume: bool = False) -> Json:
    """Compare methods of choosing widths on one model, over one grid of budgets, on one set of measured values.

    Args:
        model: local folder or hub name.
        out: folder of samples, logs, one file of plans per method, `result.json`, `table.md` and `compare.png`.
        ask: methods, budgets and held-out text. recipe: text, widths, players and rounding; plans are judged on the
            weights of `apply_rounding`, in whose format their bytes are counted.
        resume: continue an interrupted run with the same model, texts and settings; nothing finished is redone.

    Returns:
        `result.json`: per method its perplexity at every budget with 95 % intervals, ties, excess and regret.

    Raises:
        ApportionError: see `core.errors`.

    Cost: the coalitions of `recipe.permutations` orders, what methods ask for besides (`evaluations` in the result),
    and every distinct plan once on the held-out text.

    Source: the comparison of CoopQ (Findings of ACL 2026), with intervals, ties and regret; these are ours.

    >>> ask = CompareRequest(text=HELD_OUT, methods=("coopq", "lim"), avg_bits=(3,), text_windows=4, curve=False)
    >>> recipe = Recipe(calibration=TEXT, windows=2, window_tokens=24, group_size=32, permutations=2)
    >>> result = compare(MODEL, OUT, ask, recipe)
    >>> [len(row["budgets"]) for row in result["methods"].values()]
    [1, 1]
    """
    began = time.monotonic()
    recipe = (recipe or Recipe()).for_method("coopq")
    recipe.check()
    ask.check(recipe)
    asked = {"kind": "compare", "model_source": model, **asdict(ask), **recipe.asked()}
    with output_folder(Path(out), "compare", resume=resume, reads=[model]) as claimed:
        asked |= {
            "model": run_identity(model, Path(out)),
            "texts": [identity_of(recipe.calibration), text_identity(ask.text)],
        }
        if finished(claimed, asked, resume=resume):
            read_manifest(claimed)
            return {**read_json(claimed / "result.json"), "out": str(claimed)}
        return compare_into(claimed, model, ask, recipe, {"asked": asked, "began": began})


def compare_into(out: Path, model: str, ask: CompareRequest, recipe: Recipe, run: Json) -> Json:
    """The work of `compare`, in a folder that is held for it.

    Args:
        run: `asked`, what is recorded there; `began`, on the monotonic clock, seconds.
    """
    place = QuantizeRequest(device=ask.device, dtype=ask.dtype, trust_remote_code=ask.trust_remote_code)
    quantizer = open_model(model, recipe, place)
    if "optimum" in ask.methods:
        require_exhaustible(len(quantizer.costs.players), quantizer.costs.widths)
    quantizer.require_text()
    held_out = held_out_text(quantizer, ask)
    judging = judging_quantizer(quantizer)  # before the work, so that what this rounding refuses is refused now
    start(out, run["asked"])
    folder = out / SAMPLE_FOLDER
    with quantizer.game(folder, resume=True) as game:
        samples = sample(game, folder, quantizer.orders())
        elsewhere = (
            Elsewhere.of(quantizer, judging, game.text, out / "auto-judges.log") if "auto" in ask.methods else None
        )
        context = Context(game, samples, out, ask.alpha, recipe.seed, elsewhere=elsewhere)
        budgets = budgets_of(samples.costs, ask)
        chosen = {name: chosen_by(name, context, budgets) for name in ask.methods}
        exhaustive = context.exhaustive if "optimum" in ask.methods else None
        execution = game.execution()
    judged = judge(judging, held_out, wanted(samples.costs, chosen), out)
    board = scoreboard(samples, budgets, len(ask.avg_bits), choices_of(chosen), judged.values, recipe.seed)
    result = result_of(model, ask, recipe, samples, chosen, standings(board, exhaustive), judged)
    result |= {
        "optimum": summary(exhaustive) if exhaustive is not None else None,
        "execution": {**execution, "embeddings": quantizer.staged.embeddings},
        "auto_judged_on": elsewhere.judges.told if elsewhere is not None else None,
    }
    result["seconds"] = time.monotonic() - run["began"]
    return finish(out, result, chosen)


def held_out_text(quantizer: Quantizer, ask: CompareRequest) -> Windows:
    """The first windows of the held-out text."""
    windows = first_windows(
        quantizer.tokenizer,
        ask.text,
        window_tokens=quantizer.recipe.window_tokens,
        windows=ask.text_windows,
        option="--text-windows",
        bos=quantizer.recipe.bos,
    )
    return Windows(windows, str(ask.text), bool(prefix_of(quantizer.tokenizer, quantizer.recipe.bos)))


def budgets_of(costs: Costs, ask: CompareRequest) -> list[Budget]:
    """The grid, then the curve."""
    low, high = bits_range(costs)
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


def wanted(costs: Costs, chosen: Mapping[str, Json]) -> list[Assignment]:
    """Every distinct plan once, and the uniform ones."""
    plans = {item for choices in choices_of(chosen).values() for choice in choices for item in choice}
    return sorted(plans | {costs.uniform(column) for column in range(len(costs.widths))})


@dataclass(frozen=True)
class Judged:
    """NLL per held-out window of plans, and of the checkpoint's own weights."""

    values: Values
    full_precision: np.ndarray
    rounding: str
    settings: Json = field(default_factory=dict)
    bos: bool | None = None


def judging_quantizer(quantizer: Quantizer) -> Quantizer:
    """The same model with the rounding that plans are written with, where it is another.

    Raises:
        InputError: that rounding cannot hold this model or these widths.
    """
    recipe = quantizer.recipe
    if recipe.applied == recipe.measured:
        return quantizer
    return Quantizer(
        quantizer.staged, quantizer.tokenizer, replace(recipe, rounding=recipe.applied, apply_rounding=None)
    )


def judge(quantizer: Quantizer, held_out: Windows, plans: list[Assignment], out: Path) -> Judged:
    """Evaluate every plan on the held-out text, each once, sharing prefixes, appended to `text.log`."""
    settings = {key: value for key, value in quantizer.settings(held_out).items() if key != "labels"}  # perplexity's
    with AppendLog(out / "text.log", settings, resume=True) as log:
        game = MeasuredGame(quantizer.bank, held_out, log, settings)
        game.values(plans)
    full = full_precision_nll(quantizer.staged, held_out)
    return Judged(game.known, full, quantizer.rounding.name, settings, held_out.bos)


def result_of(
    model: str,
    ask: CompareRequest,
    recipe: Recipe,
    samples: Samples,
    chosen: Mapping[str, Json],
    rows: Json,
    judged: Judged,
) -> Json:
    """What is saved and printed."""
    for name, row in rows.items():
        row["evaluations"] = chosen[name]["evaluations"]
        row["seconds"] = chosen[name]["seconds"]
    costs = samples.costs
    return {
        "model": Path(model).name,
        "settings": samples.settings,
        "text": judged.settings["calibration_source"],
        "text_digest": judged.settings["calibration"],
        "text_windows": ask.text_windows,
        "text_bos": judged.bos,
        "calibration_bos": samples.windows.bos,
        "window_tokens": recipe.window_tokens,
        "calibration_windows": recipe.windows,
        "permutations": recipe.permutations,
        "alpha": ask.alpha,
        "seed": recipe.seed,
        "rounding": samples.settings["rounding"],
        "apply_rounding": judged.rounding,
        "avg_bits": list(ask.avg_bits),
        "perplexity_fp": float(np.exp(judged.full_precision.mean())),
        "perplexity_uniform": {
            width.name: float(np.exp(judged.values[costs.uniform(column)].mean()))
            for column, width in enumerate(costs.widths)
        },
        "bits_uniform": {width.name: width.bits for width in costs.widths},
        "samples": {**samples.counts, "coalitions": len(samples.values)},
        "distinct_plans": len(judged.values),
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
