"""The last choice of `--method auto`: the best few plans as they are written, judged on text that no search has seen.

The search ranks plans by values measured on weights that were rounded once per width. Where the written weights
differ from those (gptq rounds each plan in sequence; SPQE may run on one backend and the plan be written with
another), the best few plans and the best uniform one are written and measured again, on windows that the search has not
seen, and the best is kept: a mixed plan that loses to a uniform one is not kept. [ours]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from apportion.bits.game import Assignment, MeasuredGame, Samples, encode, own_nll
from apportion.bits.game.sampling import added, since
from apportion.bits.offers import Offer, plan_in
from apportion.bits.plan import Budget, Found, Plan, plan_of, search
from apportion.bits.quantizer import PlanWeights, Quantizer
from apportion.bits.rounding import TUNING
from apportion.bits.vocabulary import by_name
from apportion.core.artifact import Json
from apportion.core.device import where_not_finite
from apportion.core.errors import NumericError
from apportion.core.progress import expect_units, progress
from apportion.core.seeds import derived_seed
from apportion.models.text import Windows

WRITTEN = "plan as written"
JUDGES = 4  # finalists are few, so they can be told apart on more text than the search could afford


@dataclass(frozen=True, eq=False)
class Candidate:
    """What a search found for the blocks beside one choice for embedding and head."""

    offer: Offer
    found: Found


def searched(
    game: MeasuredGame, samples: Samples, budgets: Sequence[Budget], *, evaluations: int, seed: int
) -> tuple[Samples, list[Found]]:
    """The best measured plan for each budget; values are appended to the samples' log."""
    before = replace(game.counts)
    found, state = search(game, samples, budgets, evaluations=evaluations, seed=seed)
    earlier = len((game.resumed - samples.values.keys()) & state.seen.keys())
    counts = added(samples.counts, since(game.counts, before), earlier)
    return replace(samples, values=dict(game.known), counts=counts), found


def plan_found(candidate: Candidate) -> Plan:
    """A plan from what a search kept, with everything that was tried."""
    found = candidate.found
    plan = plan_in(candidate.offer, plan_of(found.surrogate, candidate.offer.budget, found.assignment))
    tried: tuple[Json, ...] = tuple({"assignment": encode(item), "nll": nll} for item, nll in found.tried)
    return replace(plan, measured_nll=found.nll, tried=tried, optimal=False, source=found.source)


@dataclass(frozen=True)
class Written:
    """A plan's weights as they are written.

    Attributes:
        nll: loss on the samples' own text, nats per token. judged: loss on windows that no search has seen.
        offer: the widths of embedding and head, which are in place too; None: as the files have them.
    """

    assignment: Assignment
    weights: PlanWeights
    nll: float
    judged: float
    offer: Offer | None = None


@dataclass(frozen=True)
class Judges:
    """Windows to choose finalists on, and what they are."""

    windows: Windows
    told: str


def judges_for(quantizer: Quantizer, used: Windows) -> Judges:
    """Windows to choose finalists on.

    A search looks at its own windows so often that its best plan owes part of its lead to luck there; a uniform
    plan does not. A rounding that fits its own windows flatters itself there too. So finalists meet on other windows
    of the same text, JUDGES times as many as the search had, as far as the text has others; where the model samples
    its own text, on as many new ones. A text too short for that is told.
    """
    recipe, count = quantizer.recipe, len(used.windows)
    if recipe.calibration is None:
        own = quantizer.sampled(count, derived_seed(recipe.seed, "unseen"))
        return Judges(own, f"{count} windows sampled anew")
    users = {"tuning": quantizer.tuning_text} if recipe.tune else {}
    users |= {"rounding": quantizer.rounding_text} if quantizer.applied.needs_hessian else {}
    for left in range(len(users), -1, -1):
        names = list(users)[:left]
        seen = torch.cat([used.windows, *(users[name] for name in names)])
        fresh = quantizer.mixture.unseen(seen, JUDGES * count, recipe.seed)
        if len(fresh) >= max(2, count // JUDGES):
            told = f"{len(fresh)} windows unseen by {', '.join(['search', *names])}"
            others = ", ".join(list(users)[left:])
            told += f" (not by {others}: the text is too short)" if others else ""
            return Judges(Windows(fresh, used.source), told)
    return Judges(used, "the search's own windows: the text has no others")


def written(
    quantizer: Quantizer,
    assignment: Assignment,
    text: Windows,
    judges: Windows | None = None,
    *,
    offer: Offer | None = None,
    tuned: bool = True,
) -> Written:
    """Round a plan as it is written and measure it on a text, and on another where finalists are judged.

    Args:
        offer: of embedding and head; their weights are in place beside the blocks' while it is measured.

    Raises:
        NumericError: the loss is not finite.
    """
    blocks = quantizer.written(assignment, tuned=tuned)
    weights = replace(blocks, packed={**blocks.packed, **offer.packed}) if offer else blocks
    texts = [text] if judges is None else [text, judges]
    teachers = [quantizer.teacher(item.windows) for item in texts]
    total = sum(len(item.windows) for item in texts)
    with quantizer.staged.in_place(weights.packed), progress(WRITTEN, total, "windows") as advance:
        losses = [
            float(quantizer.staged.window_nll(item.windows, advance, teacher=teacher).mean())
            for item, teacher in zip(texts, teachers, strict=True)
        ]
    nll, judged = losses[0], losses[-1]
    if not (math.isfinite(nll) and math.isfinite(judged)):
        raise NumericError(
            f"the loss of plan {encode(assignment)} as written is {nll}, and {judged} where it is judged",
            where_not_finite(quantizer.staged.placement.dtype, "another rounding"),
        )
    return Written(assignment, weights, nll, judged, offer)


def finalists(candidates: Sequence[Candidate], count: int) -> list[tuple[Candidate, Assignment]]:
    """The best few plans that were measured, and the best uniform one among all that fit, each with its candidate."""
    tried = [(one, item, nll + one.offer.cost_nats) for one in candidates for item, nll in one.found.tried]
    ranked = [(one, item) for one, item, _ in sorted(tried, key=lambda row: row[2])]
    fitting = [(one, item) for one in candidates for item in one.found.uniform]
    uniform = [(one, item) for one, item in [*ranked, *fitting] if len(set(item)) == 1]
    return list(dict.fromkeys([*ranked[:count], *uniform[:1]]))


def best_written(
    quantizer: Quantizer, candidates: Sequence[Candidate], text: Windows, count: int
) -> tuple[Plan, PlanWeights, Candidate]:
    """The finalist of least loss as written, on unseen windows, with what each came to and what it was judged on.

    Tuning takes minutes a plan: where it is asked for, the best finalist as rounded and the best uniform one are tuned
    and meet again.
    """
    judges = judges_for(quantizer, text)
    owner = {id(one.offer): one for one in candidates}

    def meet(plans: list[tuple[Candidate, Assignment]], *, tuned: bool) -> list[Written]:
        return [written(quantizer, item, text, judges.windows, offer=one.offer, tuned=tuned) for one, item in plans]

    met = meet(finalists(candidates, count), tuned=False)
    ranked = sorted(met, key=judged)
    if quantizer.recipe.tune:
        level = [item for item in ranked if len(set(item.assignment)) == 1]
        pairs = [(owner[id(item.offer)], item.assignment) for item in [ranked[0], *level[:1]]]
        pairs = list(dict.fromkeys(pairs))
        expect_units(TUNING, len(pairs) * quantizer.recipe.tune)
        again = meet(pairs, tuned=True)
        met, ranked = [*again, *met], sorted(again, key=judged)
    best = ranked[0]
    teacher = quantizer.teacher(judges.windows.windows)
    quantizer.forget_teacher(judges.windows.windows)
    own = None if teacher is None else float(own_nll(quantizer.staged, teacher, judges.windows.windows).mean())
    one = owner[id(best.offer)]
    source = one.found.source if best.assignment == one.found.assignment else "finalist"
    plan = plan_found(replace(one, found=replace(one.found, assignment=best.assignment, source=source)))
    tried = tuple(map(row_of, met))
    plan = replace(
        plan,
        measured_nll=best.nll,
        judged_nll=best.judged,
        judged_kl=None if own is None else best.judged - own,
        tried=(*tried, *plan.tried),
        judged_on=judges.told,
    )
    return plan, best.weights, one


def judged(item: Written) -> float:
    """The loss that finalists are ranked by."""
    return item.judged


def row_of(item: Written) -> Json:
    """What a finalist came to, as the plan keeps it."""
    row: Json = {"assignment": encode(item.assignment), "nll_written": item.nll, "nll_judged": item.judged}
    if item.offer is not None and item.offer.vocabulary:
        row["vocabulary"] = by_name(item.offer.vocabulary)
    return {**row, "tuned": item.weights.tuned} if item.weights.tuned else row
