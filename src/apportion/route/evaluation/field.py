"""Who takes part: every contender fitted on the same training questions."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.baselines import LengthRule, Logistic, Neighbours
from apportion.route.evaluation.contenders import (
    BestOf,
    BestStatic,
    Contender,
    Oracle,
    RandomChoice,
    Routed,
    names_of_strategies,
)
from apportion.route.evaluation.contest import Field
from apportion.route.profile.profile import Profile
from apportion.route.router.calibration import calibrate_heads
from apportion.route.router.fit import TrainingPlan
from apportion.route.router.router import Router
from apportion.route.router.train import Trained, needs_search, probed_cost, train_router
from apportion.route.router.utility import LATENCY_WEIGHTS, TOKEN_WEIGHTS, Scale, utility, weight_grid

PAIRS = {
    "need_rag_only": (("direct", "rag"), ("cot", "rag+cot")),
    "need_cot_only": (("direct", "cot"), ("rag", "rag+cot")),
}
WHAT = {
    "random": "any strategy, equally probable",
    "logistic": "logistic regression on the best strategy, per weights, on the router's features",
    "knn": "mean utility of the sqrt(n) nearest training questions, per weights, on the router's features",
    "query_length": "one strategy up to so many words, another above; best in training, per weights",
    "router_ungated": "the router without its gates: it decides at every weight",
    "without_nll": "the router without the draft and its cost (the lean tier)",
    "without_nqc": "a router trained without the retrieval features",
    "without_weights": "a router trained without seeing the weights (its gates still do)",
    "need_rag_only": "a router that decides on retrieval alone; reasoning always or never, as training says",
    "need_cot_only": "a router that decides on reasoning alone; retrieval always or never, as training says",
}


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What is compared and how.

    Attributes:
        folds: used when there is no separate training profile.
        ablations: also train the reduced routers (six more trainings a fold).
        leave_out: also leave each family out once.
    """

    folds: int = 5
    seed: int = 0
    token_weights: tuple[float, ...] = TOKEN_WEIGHTS
    latency_weights: tuple[float, ...] = LATENCY_WEIGHTS
    ablations: bool = True
    leave_out: bool = True
    training: TrainingPlan = field(default_factory=TrainingPlan)


def plain_field(profile: Profile, scale: Scale, seed: int) -> Field:
    """What needs no training questions."""
    return {**names_of_strategies(profile), "random": RandomChoice(seed), "oracle": Oracle(scale)}


def fit_field(
    seen: Profile, plan: EvaluationPlan, scale: Scale, router: Router | None
) -> tuple[Field, tuple[dict[str, Any], ...]]:
    """Everyone, fitted on the same questions."""
    if router is None:
        trained = train_router(seen, plan.training, seed=plan.seed, scale=scale)
        main, records = trained.router, tuple(_calibrations(trained))
    else:
        main, records = router, ()
    contestants: dict[str, Contender] = {
        **plain_field(seen, scale, plan.seed),
        "best_static": BestStatic(seen, scale),
        "router": Routed(main),
        "router_ungated": Routed(ungated(main)),
        "logistic": Logistic(seen, scale),
        "knn": Neighbours(seen, scale),
        "query_length": LengthRule(seen, scale),
    }
    lean = tuple(tier for tier in main.tiers if not tier.may_draft)
    if lean and len(lean) < len(main.tiers):
        contestants["without_nll"] = Routed(replace(main, tiers=lean))
    if plan.ablations:
        contestants |= ablations(seen, plan, scale)
    return contestants, records


def ungated(router: Router) -> Router:
    """The router with every gate open."""
    tiers = tuple(replace(tier, gate=replace(tier.gate, caution=-np.inf)) for tier in router.tiers)
    return replace(router, tiers=tiers)


def ablations(seen: Profile, plan: EvaluationPlan, scale: Scale) -> Field:
    """Routers trained with something taken away; those that the profile does not allow are absent."""

    def fit(profile: Profile, training: TrainingPlan = plan.training) -> Router:
        return train_router(profile, training, seed=plan.seed, scale=scale).router

    found: Field = {"without_weights": Routed(fit(seen, replace(plan.training, conditioned=False)))}
    blind = tuple(name for name in seen.feature_names if not needs_search((name,)))
    if blind and len(blind) < len(seen.feature_names) and "direct" in seen.strategies:
        found["without_nqc"] = Routed(fit(seen.keep_features(blind)))
    if len(seen.strategies) == len(STRATEGIES):
        for name, pairs in PAIRS.items():
            found[name] = BestOf(tuple(fit(seen.restrict(pair)) for pair in pairs))
    return found


def _calibrations(trained: Trained) -> list[dict[str, Any]]:
    return [
        {"tier": tier.name, "on": "held out in training", **asdict(head)}
        for tier in trained.tiers
        for head in tier.calibration
    ]


def calibrations_of(router: Router, test: Profile) -> tuple[dict[str, Any], ...]:
    """Calibration of a given router's heads on the test questions, token weights pooled."""
    found: list[dict[str, Any]] = []
    grid = weight_grid(TOKEN_WEIGHTS, (0.0,), timed=False)
    for tier in router.tiers:
        if tier.asks or not set(tier.policy.names) <= set(test.feature_names):
            continue
        features = test.keep_features(tier.policy.names).features
        costed = probed_cost(test.restrict(router.strategies), router.scale, tier.policy.names)
        asked = [np.tile([[w.token, w.latency]], (test.n, 1)) for w in grid]
        logits = np.concatenate([tier.policy.logits(features, weights) for weights in asked])
        values = np.concatenate([utility(costed, weights) for weights in grid])
        found += [{"tier": tier.name, "on": "test", **asdict(one)} for one in calibrate_heads(logits, values)]
    return tuple(found)


def features_read(contestants: Field) -> list[str]:
    """The features that the router's best tier reads."""
    router = contestants["router"]
    return list(router.router.tiers[0].policy.names) if isinstance(router, Routed) else []
