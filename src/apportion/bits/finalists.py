"""`--method auto`: a search by measuring within a stated number of evaluations, and a final choice on real weights.

The search ranks plans by values measured on weights that were rounded once per width. Where the written weights
differ from those (gptq rounds each plan in sequence; SPQE may run on one backend and the plan be written with
another), the best few plans and the best uniform one are written and measured again, on windows that the search has not
seen, and the best is kept: a mixed plan that loses to a uniform one is not kept. [ours]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from apportion.bits.game.bank import in_place
from apportion.bits.game.game import MeasuredGame, encode
from apportion.bits.game.players import Assignment
from apportion.bits.game.samples import VALUES, WINDOWS, Samples
from apportion.bits.game.sampling import added
from apportion.bits.plan.allocate import plan_of
from apportion.bits.plan.budget import Budget
from apportion.bits.plan.plan import Plan
from apportion.bits.plan.search import Found, search
from apportion.bits.quantizer import PlanWeights, Table
from apportion.core.artifact import Json
from apportion.core.errors import NumericError
from apportion.core.log import AppendLog
from apportion.core.progress import progress
from apportion.core.seeds import derived_seed
from apportion.models.text import Windows, load_calibration, sample_calibration, unseen_windows, windows_of

WIDTHS = (2, 3, 4)
JUDGES = 4  # finalists are few, so they can be told apart on more text than the search could afford


def default_widths(supported: Sequence[int]) -> tuple[int, ...]:
    """Two, three and four bits, as far as a rounding has them."""
    return tuple(bits for bits in WIDTHS if bits in supported)


def searched_plans(
    table: Table, samples: Samples, folder: Path, budgets: Sequence[Budget], *, evaluations: int
) -> tuple[Samples, list[Found]]:
    """The best measured plan for each budget; values are appended to the samples' log."""
    calibration = load_calibration(folder / WINDOWS)
    with AppendLog(folder / VALUES, samples.settings, resume=True) as log:
        game = MeasuredGame(table.bank(), calibration, log)
        earlier = game.known.keys() - samples.values.keys()
        found, state = search(game, samples, budgets, evaluations=evaluations, seed=table.sampling.seed)
    counts = added(samples.counts, game.counts, resumed=len(earlier & state.seen.keys()))
    return replace(samples, values=game.known, counts=counts), found


def plan_found(found: Found, samples: Samples, budget: Budget) -> Plan:
    """A plan from what a search kept, with everything that was tried."""
    plan = plan_of(found.surrogate, budget, found.assignment)
    tried: tuple[Json, ...] = tuple({"widths": encode(item), "nll": nll} for item, nll in found.tried)
    return replace(plan, measured_nll=found.nll, tried=tried, optimal=False, source=found.source)


@dataclass(frozen=True)
class Written:
    """A plan's weights as they are written.

    Attributes:
        nll: loss on the samples' own text, nats per token. judged: loss on windows that no search has seen.
    """

    assignment: Assignment
    weights: PlanWeights
    nll: float
    judged: float


def judging_text(table: Table, folder: Path) -> tuple[Windows, str]:
    """Windows to choose finalists on, and what they are.

    A search looks at its own windows so often that its best plan owes part of its lead to luck there; a uniform
    plan does not. A rounding that fits its own windows flatters itself there too. So finalists meet on other windows
    of the same text, JUDGES times as many as the search had, as far as the text has others; where the model samples
    its own text, on as many new ones. A text too short for that is told in the second value.
    """
    used, sampling = load_calibration(folder / WINDOWS), table.sampling
    count, length = used.windows.shape
    if sampling.calibration is None:
        seed = derived_seed(sampling.seed, "unseen")
        own = sample_calibration(table.staged, table.tokenizer, windows=count, window_tokens=length, seed=seed)
        return own, f"{count} windows sampled anew"
    available = windows_of(sampling.calibration, table.tokenizer, length)
    users = {"tuning": table.tuning_text} if sampling.tune else {}
    users |= {"rounding": table.text} if table.applied.needs_hessian else {}
    for left in range(len(users), -1, -1):
        names = list(users)[:left]
        seen = torch.cat([used.windows, *(users[name] for name in names)])
        fresh = unseen_windows(available, seen, windows=JUDGES * count, seed=sampling.seed)
        if len(fresh) >= max(2, count // JUDGES):
            told = f"{len(fresh)} windows unseen by {', '.join(['search', *names])}"
            others = ", ".join(list(users)[left:])
            return Windows(fresh, used.source), told + (f" (not by {others}: the text is too short)" if others else "")
    return used, "the search's own windows: the text has no others"


def written(table: Table, assignment: Assignment, text: Windows, judge: Windows | None = None) -> Written:
    """Round a plan as it is written and measure it on a text, and on another where finalists are judged.

    Raises:
        NumericError: the loss is not finite.
    """
    weights = table.written(assignment)
    texts = [text] if judge is None else [text, judge]
    total = sum(len(item.windows) for item in texts)
    with in_place(table.staged, weights.rounded), progress("plan as written", total, "windows") as advance:
        losses = [float(table.staged.window_nll(item.windows, advance).mean()) for item in texts]
    nll, judged = losses[0], losses[-1]
    if not (math.isfinite(nll) and math.isfinite(judged)):
        raise NumericError(
            f"the loss of plan {encode(assignment)} as written is {nll}, and {judged} where it is judged",
            "use --dtype float32 or another rounding",
        )
    return Written(assignment, weights, nll, judged)


def finalists(found: Found, count: int) -> list[Assignment]:
    """The best few plans that were measured, and the best uniform one among all that fit."""
    ranked = [item for item, _ in found.tried]
    chosen = ranked[:count]
    uniform = [item for item in [*ranked, *found.uniform] if len(set(item)) == 1]
    return list(dict.fromkeys([*chosen, *uniform[:1]]))


def best_written(
    table: Table, samples: Samples, found: Found, folder: Path, count: int
) -> tuple[Written, tuple[Json, ...], str]:
    """The finalist of least loss as written, on unseen windows; what each came to, and what it was judged on."""
    text = load_calibration(folder / WINDOWS)
    judge, judged_on = judging_text(table, folder)
    best: Written | None = None
    tried: list[Json] = []
    for item in finalists(found, count):
        one = written(table, item, text, judge)
        tuned = {"tuned": one.weights.tuned} if one.weights.tuned else {}
        tried.append({"widths": encode(item), "nll_written": one.nll, "nll_judged": one.judged, **tuned})
        best = one if best is None or one.judged < best.judged else best
    assert best is not None, "a search always keeps a plan"
    return best, tuple(tried), judged_on
