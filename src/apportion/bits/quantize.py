"""The main job in one call: checkpoint, text and budget in; a mixed-precision checkpoint and its evidence out."""

import resource
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from apportion.bits.apply import PACKAGES
from apportion.bits.checkpoint import stored_bytes, write_checkpoint
from apportion.bits.finalists import WIDTHS, best_written, plan_found, searched_plans, written
from apportion.bits.game.samples import SAMPLES, VALUES, WINDOWS, Samples
from apportion.bits.game.sampling import measure, take_samples
from apportion.bits.perplexity import perplexity
from apportion.bits.plan.allocate import allocate
from apportion.bits.plan.budget import Budget, Costs, budget_from_bits, budget_from_bytes
from apportion.bits.plan.plan import Plan
from apportion.bits.plan.search import require_evaluations
from apportion.bits.plan.sensitivity import METHODS, Sensitivity, estimate, require_alpha, require_estimable
from apportion.bits.plan.stopping import PlansStable
from apportion.bits.quantizer import PlanWeights, Table
from apportion.bits.recipe import Sampling, require_tied
from apportion.bits.report import write_report
from apportion.bits.rounding.tuning import require_windows
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
from apportion.core.device import place
from apportion.core.errors import BudgetError, InputError, require_all
from apportion.core.output import output_folder
from apportion.core.progress import progress
from apportion.models.identity import source_identity, text_identity
from apportion.models.load import load_full, load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.text import load_calibration

FRONTIER_SECONDS = 5.0  # of the solver for each of them
FRONTIER = 8  # budgets of the report's frontier, besides the one asked for


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is asked of `quantize`, besides the samples' settings.

    Attributes:
        avg_bits, max_bytes: the budget; exactly one is given.
        method: `auto` (see `bits.auto`), or one of `sensitivity.estimate`. alpha: shrinkage of coopq.
        evaluations: coalitions that `auto` may measure. finalists: plans that it writes and measures again, where
            the written weights differ from the sampled ones.
        until_stable: stop sampling permutations when the plans have stopped changing (see `bits.stopping`).
        device, dtype: where the game is played; `auto` chooses and says why.
    """

    avg_bits: float | None = None
    max_bytes: int | None = None
    method: str = "auto"
    alpha: float = 0.5
    evaluations: int = 500
    finalists: int = 3
    until_stable: bool = False
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False

    def require_one_budget(self) -> None:
        """Refuse none and two.

        Raises:
            BudgetError: saying so.
        """
        if (self.avg_bits is None) == (self.max_bytes is None):
            raise BudgetError("a budget: expected exactly one of --avg-bits and --max-bytes", "give one of them")

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


def open_table(model: str, sampling: Sampling | None = None, ask: Quantization | None = None) -> Table:
    """Load model and tokenizer and set up the game; refuses a model that is quantized already."""
    sampling, ask = sampling or Sampling(), ask or Quantization()
    sampling.check()
    placement = place(ask.device, ask.dtype)
    return Table(*load_full(model, placement, trust_remote_code=ask.trust_remote_code), sampling)


def quantize(
    model: str, out: Path, ask: Quantization, sampling: Sampling | None = None, *, resume: bool = False
) -> Json:
    """Quantize a checkpoint to a budget.

    Args:
        model: local folder or hub name.
        out: folder of the new checkpoint; plan, sensitivity, samples, report and manifest lie beside it.
        resume: continue an interrupted run with the same model, text and settings.

    Returns:
        The JSON of the command: avg_bits, bytes, nll_fp, nll_high, nll_plan (nats per token on the calibration
        text, all measured), nll_judged (of the plan as written, on the windows that `judged_on` tells; None where
        there was no choice among written plans), block_forwards, naive_block_forwards, evaluations, seconds, plan,
        out, and more.

    Raises:
        ApportionError: see `core.errors`; nothing half-written is taken for complete.
    """
    began = time.monotonic()
    sampling = sampling_for(ask.method, sampling)
    require_all(
        sampling.check, lambda: require_tied(sampling), lambda: estimate_check(ask, sampling), ask.require_one_budget
    )
    asked = {"kind": "quantize", "model_source": model, **asdict(ask), **asdict(sampling)}
    asked |= {"model": source_identity(model), "text": text_identity(sampling.calibration)}
    with output_folder(Path(out), "quantize", resume=resume, reads=[model]) as claimed:
        if finished(claimed, asked, resume=resume):
            return dict(read_manifest(claimed)["result"])
        return quantize_into(claimed, model, ask, sampling, asked, began)


def quantize_into(out: Path, model: str, ask: Quantization, sampling: Sampling, asked: Json, began: float) -> Json:
    """The work of `quantize`, in a folder that is held for it."""
    table = open_table(model, sampling, ask)
    budget = ask.budget(table.costs)
    if ask.method == "auto":
        require_evaluations(ask.evaluations, len(table.players), len(sampling.widths))
    if sampling.tune and sampling.calibration is not None:
        require_windows(table.tuning_text)
    start(out, asked)
    choose = by_search if ask.method == "auto" else by_estimate
    samples, sensitivity, plan, weights = choose(table, ask, budget, out / "samples")
    frontier = frontier_plans(sensitivity)
    samples = measure(table, samples, out / "samples", [item.assignment for item in (plan, *frontier)])
    assert stored_bytes(plan, weights.rounded, table.staged) == plan.player_bytes, "bytes differ from the prediction"
    return finish(
        out, table, samples, sensitivity, plan, [measured(item, samples) for item in frontier], weights, began
    )


Chosen = tuple[Samples, Sensitivity, Plan, PlanWeights]


def sampling_for(method: str, sampling: Sampling | None) -> Sampling:
    """The settings given, or the method's own: `auto` plays linears at 2, 3 and 4 bits, the paper blocks at 2 and 4."""
    if sampling is None:
        sampling = Sampling(widths=WIDTHS, players="linears") if method == "auto" else Sampling()
    return replace(sampling, permutations=0) if method == "auto" else sampling


def by_estimate(table: Table, ask: Quantization, budget: Budget, folder: Path) -> Chosen:
    """SPQE's samples, an estimator, and the program's optimum: the paper's way."""

    def estimator(samples: Samples) -> Sensitivity:
        return estimate(samples, ask.method, alpha=ask.alpha)

    stop = PlansStable(estimator, (budget, *frontier_budgets(table.costs))) if ask.until_stable else None
    samples = take_samples(table, folder, resume=True, stop=stop)
    sensitivity = estimator(samples)
    plan = allocate(sensitivity, budget)
    samples = measure(table, samples, folder, [plan.assignment])
    if not table.rewrites:
        return samples, sensitivity, measured(plan, samples), table.written(plan.assignment)
    final = written(table, plan.assignment, load_calibration(folder / WINDOWS))
    return samples, sensitivity, replace(plan, measured_nll=final.nll), final.weights


def by_search(table: Table, ask: Quantization, budget: Budget, folder: Path) -> Chosen:
    """Plans found by measuring; where written weights differ from sampled ones, the best of them as written."""
    samples = take_samples(table, folder, resume=True)
    samples, (found,) = searched_plans(table, samples, folder, [budget], evaluations=ask.evaluations)
    if not table.rewrites:
        return samples, found.surrogate, plan_found(found, samples, budget), table.written(found.assignment)
    best, tried, judged_on = best_written(table, samples, found, folder, ask.finalists)
    source = found.source if best.assignment == found.assignment else "finalist"
    kept = replace(found, assignment=best.assignment, source=source)
    plan = plan_found(kept, samples, budget)
    plan = replace(
        plan, measured_nll=best.nll, judged_nll=best.judged, tried=(*tried, *plan.tried), judged_on=judged_on
    )
    return samples, found.surrogate, plan, best.weights


def estimate_check(ask: Quantization, sampling: Sampling) -> None:
    """Refuse before the long work what `estimate` would refuse after it."""
    if ask.method not in ("auto", *METHODS):
        raise InputError(f"--method {ask.method}: unknown", f"choose from auto, {', '.join(METHODS)}")
    require_alpha(ask.alpha)
    require_estimable(ask.method, sampling.widths, sampling.permutations)
    if ask.finalists < 1:
        raise InputError(f"--finalists {ask.finalists}: expected at least 1")
    if ask.until_stable and ask.method == "auto":
        raise InputError(
            "--until-stable: --method auto draws no permutations that could stop",
            "limit it by --evaluations instead, or choose --method coopq, regression or shapley",
        )


def frontier_plans(sensitivity: Sensitivity) -> list[Plan]:
    """Plans at evenly spaced average bits, the ends included: one estimation serves every budget."""
    budgets = frontier_budgets(sensitivity)
    with progress("frontier", len(budgets), "budgets") as advance:
        found = []
        for budget in budgets:
            found.append(allocate(sensitivity, budget, seconds=FRONTIER_SECONDS))
            advance()
    return found


def frontier_budgets(costs: Costs) -> list[Budget]:
    """Evenly spaced average bits, the ends included."""
    low, high = costs.widths[0], costs.widths[-1]
    return [budget_from_bits(costs, low + (high - low) * step / FRONTIER) for step in range(FRONTIER + 1)]


def measured(plan: Plan, samples: Samples) -> Plan:
    """The plan with its measured loss on the calibration text."""
    return replace(plan, measured_nll=samples.mean(plan.assignment))


def finish(
    out: Path,
    table: Table,
    samples: Samples,
    sensitivity: Sensitivity,
    plan: Plan,
    frontier: list[Plan],
    weights: PlanWeights,
    began: float,
) -> Json:
    """Write the checkpoint, its evidence, the report and, last, the manifest."""
    weight_bytes, files = write_checkpoint(
        out, table.staged, plan, weights.rounded, table.sampling.group_size, table.tokenizer, table.applied.format
    )
    assert weight_bytes <= plan.total_bytes, "the file is larger than predicted"
    plan = replace(plan, total_bytes=weight_bytes)
    write_json(out / "plan.json", plan)
    write_json(out / "sensitivity.json", sensitivity)
    write_json(out / "frontier.json", {"plans": frontier})
    result = {
        "avg_bits": plan.avg_bits,
        "bytes": weight_bytes,
        "player_bytes": plan.player_bytes,
        "nll_fp": float(samples.nll_fp.mean()),
        "nll_high": samples.nll_high,
        "nll_low": samples.nll_low,
        "nll_plan": plan.measured_nll,
        "nll_judged": plan.judged_nll,
        "nll_plan_sampled": samples.mean(plan.assignment),
        "nll_predicted": plan.predicted_nll,
        "rounding": table.rounding.name,
        "apply_rounding": table.applied.name,
        "format": table.applied.format,
        "tuned": weights.tuned,
        "optimal": plan.optimal,
        "source": plan.source,
        "tried": len(plan.tried),
        "judged_on": plan.judged_on,
        "method": plan.method,
        "calibration": samples.settings["calibration_source"],
        **samples.counts,
        "seconds": time.monotonic() - began,
        "peak_memory_bytes": peak_memory(),
        "plan": plan.by_name(),
        "out": str(out),
    }
    files += [RUN, "plan.json", "sensitivity.json", "frontier.json"]
    files += [f"samples/{name}" for name in (SAMPLES, VALUES, WINDOWS)]
    write_json(out / "result.json", result)
    files += ["result.json", *write_report(out)]
    placement = table.staged.placement
    write_manifest(
        out,
        {
            "kind": "quantized checkpoint",
            "model": table.staged.digest,
            "settings": samples.settings,
            "placement": {"device": placement.device, "dtype": placement.dtype, "reason": placement.reason},
            "versions": versions(*PACKAGES),
            "result": result,
        },
        files,
    )
    return result


def peak_memory() -> int:
    """Peak resident memory of this process in bytes (GPU memory where one was used)."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_perplexity(
    model: str,
    text: Path,
    *,
    window_tokens: int,
    windows: int | None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Json:
    """Perplexity of a checkpoint (full precision or quantized by this program) on a text."""
    staged = load_staged(model, place(device, dtype), trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    found = perplexity(staged, tokenizer, text, window_tokens=window_tokens, windows=windows)
    return {"perplexity": found.perplexity, "nll": found.nll, "tokens": found.tokens, "windows": len(found.windows)}
