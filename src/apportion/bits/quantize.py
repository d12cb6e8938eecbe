"""The main job in one call: checkpoint, text and budget in; a mixed-precision checkpoint and its evidence out."""

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from apportion.bits.checkpoint import write_checkpoint
from apportion.bits.finalists import best_written, plan_found, searched, written
from apportion.bits.game import Costs, MeasuredGame, Samples, encode, measure, sample, widths_by_path
from apportion.bits.game.samples import SAMPLES, VALUES, WINDOWS
from apportion.bits.plan import (
    METHODS,
    Budget,
    Plan,
    PlansStable,
    Sensitivity,
    allocate,
    budget_from_bits,
    budget_from_bytes,
    estimate,
    require_alpha,
    require_estimable,
    require_evaluations,
)
from apportion.bits.quantizer import PlanWeights, Quantizer
from apportion.bits.recipe import Recipe, require_tied
from apportion.bits.report import write_report
from apportion.bits.rounding import best_affordable, free_bytes, require_windows
from apportion.bits.time_left import foresee
from apportion.bits.written import proven
from apportion.core.artifact import (
    RUN,
    Json,
    finished,
    read_manifest,
    start,
    versions,
    write_json,
    write_manifest,
)
from apportion.core.device import peak_memory, place
from apportion.core.errors import BudgetError, InputError, require_all
from apportion.core.output import output_folder
from apportion.core.progress import forecast, progress
from apportion.models.identity import source_identity, text_identity
from apportion.models.load import load_full

PACKAGES = ("torch", "transformers", "compressed-tensors", "optimum-quanto", "hqq", "pyscipopt", "numpy")
WORK = "work"  # pieces of rounding and tuning that a killed run left; removed when all is written
FRONTIER_SECONDS = 5.0  # of the solver for each of them
FRONTIER = 8  # budgets of the report's frontier, besides the one asked for


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What is asked of `quantize`, besides the recipe.

    Attributes:
        avg_bits, max_bytes: the budget; exactly one is given.
        method: `auto` (see `plan.search` and `finalists`), or one of `plan.estimate`. alpha: shrinkage of coopq.
        evaluations: coalitions that `auto` may measure. finalists: plans that it writes and measures again, where
            the written weights differ from the sampled ones.
        fast: as quick as can be: codes rounded to nearest, untuned, unless the recipe says otherwise.
        until_stable: stop sampling permutations when the plans have stopped changing (see `plan.stopping`).
        device, dtype: where the game is played; `auto` chooses and says why.
    """

    avg_bits: float | None = None
    max_bytes: int | None = None
    method: str = "auto"
    alpha: float = 0.5
    evaluations: int = 500
    finalists: int = 3
    fast: bool = False
    until_stable: bool = False
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False

    def check(self, recipe: Recipe) -> None:
        """Refuse before the long work what its steps would refuse after it, all at once.

        Args:
            recipe: with the method's own choices in it.

        Raises:
            InputError: with every offending value. MissingExtraError: a rounding's package is missing.
        """
        require_all(
            recipe.check, lambda: require_tied(recipe), lambda: self.require_method(recipe), self.require_one_budget
        )

    def require_one_budget(self) -> None:
        """Refuse none and two.

        Raises:
            BudgetError: saying so.
        """
        if (self.avg_bits is None) == (self.max_bytes is None):
            raise BudgetError("a budget: expected exactly one of --avg-bits and --max-bytes", "give one of them")

    def require_method(self, recipe: Recipe) -> None:
        """Refuse a method, or options of it, that cannot be.

        Raises:
            InputError: naming the offender.
        """
        if self.method not in ("auto", *METHODS):
            raise InputError(f"--method {self.method}: unknown", f"choose from auto, {', '.join(METHODS)}")
        require_alpha(self.alpha)
        require_estimable(self.method, recipe.grid(), recipe.permutations)
        if self.finalists < 1:
            raise InputError(f"--finalists {self.finalists}: expected at least 1")
        if self.until_stable and self.method == "auto":
            raise InputError(
                "--until-stable: --method auto draws no permutations that could stop",
                "limit it by --evaluations instead, or choose --method coopq, regression or shapley",
            )

    def budget(self, costs: Costs) -> Budget:
        """The budget in bytes of players.

        Raises:
            InputError: none or two budgets. BudgetError: out of range.
        """
        self.require_one_budget()
        if self.avg_bits is not None:
            return budget_from_bits(costs, self.avg_bits)
        assert self.max_bytes is not None
        return budget_from_bytes(costs, self.max_bytes)


def open_model(model: str, recipe: Recipe | None = None, ask: QuantizeRequest | None = None) -> Quantizer:
    """Load a checkpoint and set it up to be quantized.

    Args:
        model: local folder or hub name. recipe: what is measured and how weights are rounded.
        ask: of it `device`, `dtype` and `trust_remote_code` are read.

    Returns:
        The model with its players, their costs and its texts; nothing is measured or rounded yet.

    Raises:
        InputError: the recipe cannot be used, or the checkpoint cannot be loaded or is quantized already.
        ModelStructureError: the model cannot be cut into blocks.

    Cost: the checkpoint in memory, in its own dtype and in that it is computed in.

    >>> quantizer = open_model(MODEL, Recipe(calibration=TEXT, group_size=32))
    >>> [width.name for width in quantizer.costs.widths], len(quantizer.costs.players)
    (['w2g32', 'w4g32'], 2)
    """
    recipe, ask = recipe or Recipe(), ask or QuantizeRequest()
    recipe.check()
    placement = place(ask.device, ask.dtype)
    return Quantizer(*load_full(model, placement, trust_remote_code=ask.trust_remote_code), recipe)


def quantize(
    model: str, out: Path, ask: QuantizeRequest, recipe: Recipe | None = None, *, resume: bool = False
) -> Json:
    """Quantize a checkpoint to a budget.

    Args:
        model: local folder or hub name.
        out: folder of the new checkpoint; plan, sensitivity, samples, report and manifest lie beside it.
        ask: budget and method. recipe: text, widths, players and rounding; what it leaves open the method chooses
            (`Recipe.for_method`), as the command does.
        resume: continue an interrupted run with the same model, text and settings.

    Returns:
        The JSON of the command: avg_bits, bytes, nll_fp, nll_high, nll_plan (nats per token on the calibration
        text, all measured), nll_judged (of the plan as written, on the windows that `judged_on` tells; None where
        there was no choice among written plans), block_forwards, naive_block_forwards, evaluations, execution (how
        values were measured, and what memory made it give up), seconds, plan, out, and more.

    Raises:
        ApportionError: see `core.errors`; nothing half-written is taken for complete.

    Cost: `evaluations` (or permutations times players) coalitions on the calibration text, and rounding.

    Source: CoopQ (Findings of ACL 2026, arXiv 2509.15455) with `method="coopq"` and players as blocks; `auto` is ours.

    >>> ask = QuantizeRequest(avg_bits=3, evaluations=20, fast=True)
    >>> recipe = Recipe(calibration=TEXT, windows=2, window_tokens=24, group_size=32)
    >>> result = quantize(MODEL, OUT, ask, recipe)
    >>> result["avg_bits"] <= 3, result["bytes"] == (OUT / "model.safetensors").stat().st_size
    (True, True)
    """
    began = time.monotonic()
    recipe = (recipe or Recipe()).for_method(ask.method)
    ask.check(recipe)
    asked = {"kind": "quantize", "model_source": model, **asdict(ask), **asdict(recipe)}
    asked |= {"model": source_identity(model), "text": text_identity(recipe.calibration)}
    with output_folder(Path(out), "quantize", resume=resume, reads=[model]) as claimed:
        if finished(claimed, asked, resume=resume, raisable=("evaluations",)):
            return dict(read_manifest(claimed)["result"])
        run = {"asked": asked, "began": began, "trust_remote_code": ask.trust_remote_code}
        with forecast():
            return quantize_into(claimed, model, ask, recipe, run)


def quantize_into(out: Path, model: str, ask: QuantizeRequest, recipe: Recipe, run: Json) -> Json:
    """The work of `quantize`, in a folder that is held for it.

    Args:
        run: `asked`, what is recorded there; `began`, on the monotonic clock, seconds; `trust_remote_code`.
    """
    quantizer = open_affordable(model, recipe, ask)
    budget = ask.budget(quantizer.costs)
    if ask.method == "auto":
        require_evaluations(ask.evaluations, len(quantizer.costs.players), len(quantizer.costs.widths))
    if quantizer.recipe.tune and recipe.calibration is not None:
        require_windows(quantizer.tuning_text)
    start(out, run["asked"])
    quantizer.work = out / WORK
    folder = out / "samples"
    with quantizer.game(folder, resume=True) as game:
        chosen = (by_search if ask.method == "auto" else by_estimate)(quantizer, game, ask, budget, folder)
        frontier = frontier_plans(chosen.sensitivity)
        level = [game.costs.uniform(column) for column in range(len(game.costs.widths))]
        samples = measure(game, chosen.samples, [*(item.assignment for item in (chosen.plan, *frontier)), *level])
        told = {**game.execution(), "embeddings": quantizer.staged.embeddings, "tokenised": quantizer.tokenised}
    frontier = [measured(item, samples) for item in frontier]
    return finish(out, quantizer, replace(chosen, samples=samples), frontier, {**run, "execution": told})


def open_affordable(model: str, recipe: Recipe, ask: QuantizeRequest) -> Quantizer:
    """`open_model`, with what the recipe leaves open as the machine affords it."""
    staged, tokenizer = load_full(model, place(ask.device, ask.dtype), trust_remote_code=ask.trust_remote_code)
    device, weights = staged.placement.device, sum(weight.numel() for weight in staged.originals.values())
    choice = best_affordable(device, weights, free_bytes(device), fast=ask.fast) if recipe.open else None
    return Quantizer(staged, tokenizer, recipe, choice)


@dataclass(frozen=True)
class Chosen:
    """What a method kept: the plan, its weights as they are written, and what it was chosen by."""

    samples: Samples
    sensitivity: Sensitivity
    plan: Plan
    weights: PlanWeights


def by_estimate(quantizer: Quantizer, game: MeasuredGame, ask: QuantizeRequest, budget: Budget, folder: Path) -> Chosen:
    """SPQE's samples, an estimator, and the program's optimum: the paper's way."""

    def estimator(samples: Samples) -> Sensitivity:
        return estimate(samples, ask.method, alpha=ask.alpha)

    stop = PlansStable(estimator, (budget, *frontier_budgets(game.costs))) if ask.until_stable else None
    samples = sample(game, folder, quantizer.orders(), stop=stop)
    foresee(quantizer, evaluations=0, finalists=1)
    sensitivity = estimator(samples)
    plan = allocate(sensitivity, budget)
    samples = measure(game, samples, [plan.assignment])
    if not quantizer.rewrites:
        return Chosen(samples, sensitivity, measured(plan, samples), quantizer.written(plan.assignment))
    final = written(quantizer, plan.assignment, game.text)
    return Chosen(samples, sensitivity, replace(plan, measured_nll=final.nll), final.weights)


def by_search(quantizer: Quantizer, game: MeasuredGame, ask: QuantizeRequest, budget: Budget, folder: Path) -> Chosen:
    """Plans found by measuring; where written weights differ from sampled ones, the best of them as written."""
    samples = sample(game, folder, quantizer.orders())
    foresee(quantizer, evaluations=ask.evaluations, finalists=ask.finalists + 1)
    samples, found = searched(game, samples, budget, evaluations=ask.evaluations, seed=quantizer.recipe.seed)
    if not quantizer.rewrites:
        return Chosen(samples, found.surrogate, plan_found(found, budget), quantizer.written(found.assignment))
    plan, weights = best_written(quantizer, found, budget, game.text, ask.finalists)
    return Chosen(samples, found.surrogate, plan, weights)


def frontier_plans(sensitivity: Sensitivity) -> list[Plan]:
    """Plans at evenly spaced average bits, the ends included: one estimation serves every budget."""
    budgets = frontier_budgets(sensitivity.costs)
    with progress("frontier", len(budgets), "budgets") as advance:
        found = []
        for budget in budgets:
            found.append(allocate(sensitivity, budget, seconds=FRONTIER_SECONDS))
            advance()
    return found


def frontier_budgets(costs: Costs) -> list[Budget]:
    """Evenly spaced average bits, the ends included."""
    low, high = costs.average_bits(costs.uniform(0)), costs.average_bits(costs.uniform(-1))
    return [budget_from_bits(costs, low + (high - low) * step / FRONTIER) for step in range(FRONTIER + 1)]


def uniform_rows(samples: Samples, plan: Plan) -> list[Json]:
    """The plain alternatives: every player at one width; losses as sampled, and as written where that was tried."""
    written = {item["assignment"]: item for item in reversed(plan.tried) if "nll_judged" in item}
    rows = []
    for column, width in enumerate(samples.costs.widths):
        level = samples.costs.uniform(column)
        rows.append(
            {
                "width": width.name,
                "bytes": samples.costs.spent(level) + samples.costs.fixed_bytes,
                "fits": samples.costs.spent(level) <= plan.budget_bytes,
                "nll_sampled": samples.mean(level),
                "nll_judged": written.get(encode(level), {}).get("nll_judged"),
            }
        )
    return rows


def measured(plan: Plan, samples: Samples) -> Plan:
    """The plan with its measured loss on the calibration text."""
    return replace(plan, measured_nll=samples.mean(plan.assignment))


def finish(out: Path, quantizer: Quantizer, chosen: Chosen, frontier: list[Plan], run: Json) -> Json:
    """Write the checkpoint, its evidence, the report and, last, the manifest.

    Args:
        run: `execution` (how it was measured), `began` (on the monotonic clock, seconds), `trust_remote_code`.
    """
    samples, sensitivity, plan, weights = chosen.samples, chosen.sensitivity, chosen.plan, chosen.weights
    widths = widths_by_path(quantizer.staged, quantizer.costs, plan.assignment)
    form = quantizer.applied.format
    weight_bytes, files = write_checkpoint(out, quantizer.staged, widths, weights.packed, quantizer.tokenizer, form)
    assert weight_bytes <= plan.total_bytes, "the file is larger than predicted"
    proof = proven(out, quantizer.staged, weights.packed, form, trust_remote_code=run["trust_remote_code"])
    plan = replace(plan, total_bytes=weight_bytes)
    write_json(out / "plan.json", plan)
    write_json(out / "sensitivity.json", sensitivity)
    write_json(out / "frontier.json", {"plans": frontier})
    result = {
        "avg_bits": plan.avg_bits,
        "stored_bits": plan.costs.stored_bits(plan.assignment),
        "bytes": weight_bytes,
        "player_bytes": plan.player_bytes,
        "budget": plan.asked,
        "nll_fp": float(samples.nll_fp.mean()),
        "nll_high": samples.nll_high,
        "nll_low": samples.nll_low,
        "nll_plan": plan.measured_nll,
        "nll_judged": plan.judged_nll,
        "nll_plan_sampled": samples.mean(plan.assignment),
        "nll_predicted": plan.predicted_nll,
        "rounding": quantizer.rounding.name,
        "apply_rounding": quantizer.applied.name,
        "format": form.name,
        "servers": list(form.servers),
        **proof,
        "choice": asdict(quantizer.choice) if quantizer.choice else None,
        "tuned": weights.tuned,
        "optimal": plan.optimal,
        "source": plan.source,
        "tried": len(plan.tried),
        "uniform": uniform_rows(samples, plan),
        "judged_on": plan.judged_on,
        "method": plan.method,
        "calibration": samples.settings["calibration_source"],
        "bos": samples.windows.bos,
        **samples.counts,
        "execution": run["execution"],
        "seconds": time.monotonic() - run["began"],
        "peak_memory_bytes": peak_memory(),
        "plan": plan.by_name(),
        "out": str(out),
    }
    files += [RUN, "plan.json", "sensitivity.json", "frontier.json"]
    files += [f"samples/{name}" for name in (SAMPLES, VALUES, WINDOWS)]
    write_json(out / "result.json", result)
    files += ["result.json", *write_report(out)]
    placement = quantizer.staged.placement
    write_manifest(
        out,
        {
            "kind": "quantized checkpoint",
            "model": quantizer.staged.digest,
            "settings": samples.settings,
            "placement": placement,
            "versions": versions(*PACKAGES),
            "result": result,
        },
        files,
    )
    shutil.rmtree(out / WORK, ignore_errors=True)
    return result
