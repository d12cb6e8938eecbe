"""From values to one plan and its weights: the program's optimum, or the best of what was measured."""

from dataclasses import dataclass, replace
from pathlib import Path

from apportion.bits.finalists import Candidate, best_written, plan_found, searched, written
from apportion.bits.game import Costs, MeasuredGame, Samples, encode, measure, sample
from apportion.bits.offers import Offer, Offers, plan_in, priced, sensitivity_in
from apportion.bits.plan import Budget, Plan, PlansStable, Sensitivity, allocate, estimate
from apportion.bits.quantizer import PlanWeights, Quantizer
from apportion.bits.request import QuantizeRequest
from apportion.bits.time_left import foresee, foresee_the_end
from apportion.core.artifact import Json
from apportion.core.progress import progress

FRONTIER_SECONDS = 5.0  # of the solver for each of them
FRONTIER = 8  # budgets of the report's frontier, besides the one asked for


@dataclass(frozen=True)
class Chosen:
    """What a method kept: the plan, its weights as they are written, and what it was chosen by.

    Attributes:
        offer: the widths of embedding and head.
    """

    samples: Samples
    sensitivity: Sensitivity
    plan: Plan
    weights: PlanWeights
    offer: Offer


def by_estimate(quantizer: Quantizer, game: MeasuredGame, ask: QuantizeRequest, offers: Offers, folder: Path) -> Chosen:
    """SPQE's samples, an estimator, and the program's optimum: the paper's way."""

    def estimator(samples: Samples) -> Sensitivity:
        return estimate(samples, ask.method, alpha=ask.alpha)

    budgets = (*(offer.budget for offer in offers.choices), *frontier_budgets(game.costs))
    stop = PlansStable(estimator, budgets) if ask.until_stable else None
    samples = sample(game, folder, quantizer.orders(), stop=stop)
    foresee(quantizer, evaluations=shown_plans(game.costs), finalists=1, measured=game.counts.evaluations)
    sensitivity = estimator(samples)
    choices = priced(quantizer, offers.choices, game.text, float(samples.nll_fp.mean()))
    plans = [plan_in(offer, allocate(sensitivity, offer.budget)) for offer in choices]
    plan, offer = min(zip(plans, choices, strict=True), key=lambda item: item[0].predicted_nll)
    samples = measure(game, samples, [plan.assignment])
    sensitivity = sensitivity_in(offer, sensitivity)
    if not quantizer.rewrites and not offer.vocabulary:
        weights = quantizer.written(plan.assignment)
        return Chosen(samples, sensitivity, measured(plan, samples), weights, offer)
    final = written(quantizer, plan.assignment, game.text, offer=offer)
    return Chosen(samples, sensitivity, replace(plan, measured_nll=final.nll), final.weights, offer)


def by_search(quantizer: Quantizer, game: MeasuredGame, ask: QuantizeRequest, offers: Offers, folder: Path) -> Chosen:
    """Plans found by measuring; where written weights differ from sampled ones, the best of them as written."""
    samples = sample(game, folder, quantizer.orders())
    foresee(quantizer, evaluations=ask.evaluations, finalists=ask.finalists + 1)
    choices = priced(quantizer, offers.choices, game.text, float(samples.nll_fp.mean()))
    budgets = [offer.budget for offer in choices]
    samples, found = searched(game, samples, budgets, evaluations=ask.evaluations, seed=quantizer.recipe.seed)
    measured = game.counts.evaluations
    foresee(quantizer, evaluations=shown_plans(game.costs), finalists=ask.finalists + 1, measured=measured)
    candidates = [Candidate(*pair) for pair in zip(choices, found, strict=True)]
    if not quantizer.rewrites and not any(offer.vocabulary for offer in choices):
        (only,) = candidates
        weights = quantizer.written(only.found.assignment)
        return Chosen(samples, only.found.surrogate, plan_found(only), weights, only.offer)
    plan, weights, best = best_written(quantizer, candidates, game.text, ask.finalists)
    foresee_the_end()
    return Chosen(samples, sensitivity_in(best.offer, best.found.surrogate), plan, weights, best.offer)


def frontier_plans(sensitivity: Sensitivity, offer: Offer) -> list[Plan]:
    """Plans at evenly spaced bytes, the ends included: one estimation serves every budget.

    Embedding and head are in their bytes as they were chosen, and at full precision in their losses, as sampled.
    """
    sampled = replace(offer, costs={})
    budgets = frontier_budgets(sensitivity.costs)
    with progress("frontier", len(budgets), "budgets") as advance:
        found = []
        for budget in budgets:
            found.append(plan_in(sampled, allocate(sensitivity, budget, seconds=FRONTIER_SECONDS)))
            advance()
    return found


def shown_plans(costs: Costs) -> int:
    """Plans that are measured besides, to be shown: the frontier's and the uniform ones."""
    return FRONTIER + 1 + len(costs.widths)


def frontier_budgets(costs: Costs) -> list[Budget]:
    """Evenly spaced bytes, the ends included."""
    low, high = costs.spent(costs.uniform(0)), costs.spent(costs.uniform(-1))
    sizes = [low + (high - low) * step // FRONTIER for step in range(FRONTIER + 1)]
    return [Budget(size, f"{size:,} bytes of the quantized linears") for size in sizes]


def uniform_rows(samples: Samples, plan: Plan) -> list[Json]:
    """The plain alternatives, embedding and head as in the plan; losses as sampled, and as written where tried."""
    written = {
        item["assignment"]: item
        for item in reversed(plan.tried)
        if "nll_judged" in item and item.get("vocabulary", {}) == plan.vocabulary
    }
    rows = []
    for column, width in enumerate(plan.costs.widths):
        level = plan.costs.uniform(column)
        rows.append(
            {
                "width": width.name,
                "bytes": plan.costs.spent(level) + plan.costs.fixed_bytes,
                "fits": plan.costs.spent(level) <= plan.budget_bytes,
                "nll_sampled": samples.mean(level),
                "nll_judged": written.get(encode(level), {}).get("nll_judged"),
            }
        )
    return rows


def measured(plan: Plan, samples: Samples) -> Plan:
    """The plan with its measured loss on the calibration text."""
    return replace(plan, measured_nll=samples.mean(plan.assignment))
