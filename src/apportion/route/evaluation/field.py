"""Who takes part: every contender fitted on the same training questions."""

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from apportion.route.ask.features import group_of
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.baselines import LengthRule, Logistic, Neighbours
from apportion.route.evaluation.ceilings import ByDataset, RepeatedOracle, SameShares
from apportion.route.evaluation.contest import (
    BestOf,
    BestStatic,
    Contender,
    Oracle,
    RandomChoice,
    Routed,
    RouterStatic,
    names_of_strategies,
)
from apportion.route.profile.profile import Profile
from apportion.route.router.calibration import calibrate_pooled
from apportion.route.router.lesson import probed_cost
from apportion.route.router.plan import TrainingPlan
from apportion.route.router.router import Guard, Router
from apportion.route.router.train import Trained, train_router
from apportion.route.router.utility import LATENCY_WEIGHTS, TOKEN_WEIGHTS, Scale

PAIRS = {
    "need_rag_only": (("direct", "rag"), ("cot", "rag+cot")),
    "need_cot_only": (("direct", "cot"), ("rag", "rag+cot")),
}
ESCALATING = "always_rag+look"
WHAT = {
    "random": "any strategy, equally probable",
    "same_shares": "the router's decisions dealt out to the questions at random",
    "by_dataset": "the strategy best in training for the question's data set, which no live question names",
    "oracle_repeated": "the best strategy of each question in the repeated run, judged by this one",
    "logistic": "logistic regression on the best strategy, per weights, on the router's features",
    "knn": "mean utility of the sqrt(n) nearest training questions, per weights, on the router's features",
    "query_length": "one strategy up to so many words, another above; best in training, per weights",
    "router_ungated": "the router without its gates: it decides at every weight",
    "one_decision": "the router without its second decision",
    "escalating": "always RAG, then RAG+CoT where the second decision says so, at every weight (as RASER does)",
    "without_nll": "the router without the draft and its cost",
    "without_nqc": "a router trained without the retrieval features",
    "without_weights": "a router whose networks do not see the weights (its gates still do)",
    "need_rag_only": "a router that decides on retrieval alone; reasoning always or never, as training says",
    "need_cot_only": "a router that decides on reasoning alone; retrieval always or never, as training says",
}


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What is compared and how.

    Attributes:
        folds: used when there is no separate training profile.
        token_weights, latency_weights: every pair is judged (latencies only where they were recorded).
        ablations: also train the reduced routers (four more trainings a fold).
        leave_out: also leave each family out once.
        stages: decisions of the routers that are trained here, 1 or 2.
    """

    folds: int = 5
    seed: int = 0
    token_weights: tuple[float, ...] = TOKEN_WEIGHTS
    latency_weights: tuple[float, ...] = LATENCY_WEIGHTS
    ablations: bool = True
    leave_out: bool = True
    stages: int = 1
    training: TrainingPlan = field(default_factory=TrainingPlan)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Everyone who takes part in a split, and what is known of the router's training."""

    contenders: dict[str, Contender]
    calibration: tuple[dict[str, Any], ...] = ()
    features: tuple[str, ...] = ()


def plain_field(profile: Profile, scale: Scale, seed: int, repeat: Profile | None = None) -> dict[str, Contender]:
    """What needs no training questions."""
    again = {"oracle_repeated": RepeatedOracle(repeat, scale)} if repeat else {}
    return {**names_of_strategies(profile), "random": RandomChoice(seed), "oracle": Oracle(scale), **again}


def given_field(profile: Profile, router: Router, seed: int, repeat: Profile | None = None) -> Fitted:
    """A router that is there already, and what needs no training questions."""
    plain = plain_field(profile, router.scale, seed, repeat)
    return Fitted(
        {**plain, "best_static": RouterStatic(router), **_of_router(router, seed)},
        calibrations_of(router, profile),
        router.tiers[0].names,
    )


def fit_field(
    seen: Profile,
    plan: EvaluationPlan,
    scale: Scale,
    *,
    router: Router | None = None,
    repeat: Profile | None = None,
) -> Fitted:
    """Everyone, fitted on the same questions; a router that is given is not trained."""
    trained = None if router else _trained(seen, plan, scale)
    main = router or trained.router  # type: ignore[union-attr]  # one of them is there
    contenders: dict[str, Contender] = {
        **plain_field(seen, scale, plan.seed, repeat),
        "best_static": BestStatic(seen, scale),
        "by_dataset": ByDataset(seen, scale),
        **_of_router(main, plan.seed),
        "logistic": Logistic(seen, scale),
        "knn": Neighbours(seen, scale),
        "query_length": LengthRule(seen, scale),
    }
    if plan.ablations:
        contenders |= ablations(seen, plan, scale)
    return Fitted(contenders, tuple(_calibrations(trained)) if trained else (), main.tiers[0].names)


def _trained(seen: Profile, plan: EvaluationPlan, scale: Scale) -> Trained:
    return train_router(seen, plan.training, seed=plan.seed, scale=scale, stages=plan.stages)


def _of_router(router: Router, seed: int) -> dict[str, Contender]:
    """The router, and what it is with a part of it taken away or chance in its place."""
    found: dict[str, Contender] = {
        "router": Routed(router),
        "router_ungated": Routed(ungated(router)),
        "same_shares": SameShares(router, seed),
    }
    plain = tuple(tier for tier in router.tiers if not tier.may_draft)
    if plain and len(plain) < len(router.tiers):
        guard = Guard(router.guard.undrafted, router.guard.undrafted) if router.guard else None
        found["without_nll"] = Routed(replace(router, tiers=plain, guard=guard))
    if router.second:
        found["one_decision"] = Routed(router.one_decision())
    escalating = tuple(tier for tier in router.tiers if tier.name == ESCALATING)
    if escalating:
        found["escalating"] = Routed(ungated(replace(router, tiers=escalating)))
    return found


def ungated(router: Router) -> Router:
    """The router with every gate open."""
    tiers = tuple(replace(tier, gate=tier.gate.opened()) for tier in router.tiers)
    guard = router.guard and Guard(router.guard.any.opened(), router.guard.undrafted.opened())
    return replace(router, tiers=tiers, guard=guard)


def ablations(seen: Profile, plan: EvaluationPlan, scale: Scale) -> dict[str, Contender]:
    """Routers trained with something taken away; those that the profile does not allow are absent."""
    found: dict[str, Contender] = {}
    blind = replace(plan, training=replace(plan.training, conditioned=False))
    found["without_weights"] = Routed(_trained(seen, blind, scale).router)
    kept = tuple(name for name in seen.feature_names if group_of(name) != "retrieval")
    if kept and len(kept) < len(seen.feature_names) and "direct" in seen.strategies:
        found["without_nqc"] = Routed(_trained(seen.keep_features(kept), plan, scale).router)
    if len(seen.strategies) == len(STRATEGIES):
        alone = replace(plan, stages=1)
        for name, pairs in PAIRS.items():
            found[name] = BestOf(tuple(_trained(seen.restrict(pair), alone, scale).router for pair in pairs))
    return found


def _calibrations(trained: Trained) -> list[dict[str, Any]]:
    return [
        {"tier": tier.name, "on": "held out in training", **asdict(head)}
        for tier in trained.tiers
        if tier.kind == "network" and tier.fit.checks
        for head in tier.calibration
    ]


def calibrations_of(router: Router, test: Profile) -> tuple[dict[str, Any], ...]:
    """Calibration of a given router's heads on the test questions, token weights pooled."""
    found: list[dict[str, Any]] = []
    for tier in router.tiers:
        if tier.asking or tier.looks or not set(tier.names) <= set(test.feature_names):
            continue
        read = tier.decider.reader.read(test)
        costed = probed_cost(test.restrict(router.strategies), router.scale, tier.names)
        heads = calibrate_pooled(partial(tier.decider.scores, read), costed)
        found += [{"tier": tier.name, "on": "test", **asdict(one)} for one in heads]
    return tuple(found)
