"""A profile -> a router: everything that may decide is fitted and judged on folds, and a guard chooses.

Each of K folds is held out from its own members, so every candidate has, for every question and at every node of
a grid of weights, a decision made without it. Gates and guard are computed from those; the router is made of all
members together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from apportion.core.errors import InputError
from apportion.route.ask.features import FEATURES, is_draft
from apportion.route.ask.strategy import RAG
from apportion.route.profile.profile import Profile
from apportion.route.router.calibration import Calibration
from apportion.route.router.candidate import (
    ASKING,
    FULL,
    LEAN,
    Candidate,
    Fit,
    constant,
    feature_sets,
    forest,
    linear,
    looking,
    network,
    stump,
)
from apportion.route.router.draft import Drafted
from apportion.route.router.folds import split_folds
from apportion.route.router.gate import gate_of, guard_of
from apportion.route.router.learn_second import SecondLearned, can_look, learn_second
from apportion.route.router.lesson import Lesson
from apportion.route.router.plan import TrainingPlan
from apportion.route.router.policy import mean_outcome
from apportion.route.router.price import Price
from apportion.route.router.reader import mean_and_spread
from apportion.route.router.router import Guard, Router, Tier
from apportion.route.router.utility import Scale, cost, scale_of

CAUTION = 1.0  # standard errors; with evidence pooled over nodes, noise opens 2 to 4 % (LOG)


@dataclass(frozen=True, slots=True)
class TierRecord:
    """How one tier came about: what it reads, how it was fitted, its heads' calibration."""

    name: str
    kind: str
    features: tuple[str, ...]
    fit: Fit
    calibration: tuple[Calibration, ...]


@dataclass(frozen=True, slots=True)
class SecondRecord:
    """How the second decision came about: held-out squared error against the variance of what it predicts."""

    features: tuple[str, ...]
    error: float
    variance: float
    offered_share: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A router and how it came about.

    Attributes:
        tiers: in the order of the router's. second: None where one decision was asked for, or learned.
        dropped: everything of the profile that could not be used, each with its reason.
        repeated_texts: questions whose text another before them has; they share its fold, and count as one in errors.
    """

    router: Router
    tiers: tuple[TierRecord, ...]
    second: SecondRecord | None
    plan: TrainingPlan
    seed: int
    questions: int
    dropped: tuple[str, ...]
    repeated_texts: int


def train_router(
    profile: Profile,
    plan: TrainingPlan | None = None,
    *,
    seed: int = 0,
    caution: float = CAUTION,
    scale: Scale | None = None,
    price: Price | None = None,
    stages: int = 1,
) -> Trained:
    """Learn from outcomes which questions need retrieval and which need reasoning, at any cost weights.

    Args:
        profile: n questions with quality, tokens and, where known, latency of each strategy; n at least
            4 x `plan.folds`. Features that this program cannot measure when asked are left out.
        plan: how the networks are fitted; the defaults take about 6 s a network for 500 questions.
        seed: of folds, initial weights and draws; equal seeds give equal routers.
        caution: standard errors by which deciding must beat the best static strategy on held-out questions.
        scale: what a weight of 1 refers to; the profile's own without it.
        price: of tokens by kind; without it every token counts the same. Not with a scale, which has its own.
        stages: 2 lets reasoning be decided after a retrieved answer, where folds show a gain.

    Returns:
        The router, and how each of its tiers came about.

    Raises:
        InputError: one strategy only, too few questions, no feature that varies, or an answer quality of 0
            throughout.

    Cost: three networks (folds x seeds members each), forests and a few decompositions of features x features.

    Source: dual heads conditioned on the weights, X-Router (METHODS section 2); gates, tiers and the cheap
    rules are ours.

    >>> from apportion.demo.recorded import recorded
    >>> brief = TrainingPlan(folds=2, seeds=1, steps=20, check_every=10)
    >>> trained = train_router(recorded("train").select(np.arange(60)), brief)
    >>> trained.router.strategies
    ('direct', 'rag', 'cot', 'rag+cot')
    """
    plan = plan or TrainingPlan()
    if stages not in (1, 2):
        raise InputError(f"stages {stages}: expected 1 or 2 decisions")
    whole = usable(profile)
    scale = scale or scale_of(whole, price)
    held = tuple(split_folds(whole.dataset, plan.folds, seed, whole.groups))
    lesson = Lesson(whole, scale, cost(whole, scale), held, plan, seed, caution)
    candidates = fit_candidates(lesson)
    learned, why = _second(lesson, stages)
    if learned:
        candidates += look_candidates(candidates, learned, lesson)
    router = _assemble(lesson, candidates, learned)
    return Trained(
        router=router,
        tiers=tuple(map(_record, candidates)),
        second=_second_record(router, learned),
        plan=plan,
        seed=seed,
        questions=whole.n,
        dropped=(*whole.dropped, *why),
        repeated_texts=whole.n - whole.different,
    )


def usable(profile: Profile) -> Profile:
    """The complete questions with the features that can be learned from; what is left out is said in `dropped`.

    Raises:
        InputError: as in `train_router`, before anything is fitted.
    """
    whole = _measurable(profile.only_complete())
    if len(whole.columns) < 2:
        raise InputError(f"profile: only {whole.strategies[0]} was recorded, expected at least 2 strategies")
    if not whole.quality[:, list(whole.columns)].any():
        raise InputError(
            f"profile: the quality of every answer to {whole.n} questions is 0, so there is nothing to learn",
            "look at the answers: is the answer pattern found, are the gold answers those of these questions?",
        )
    if LEAN not in feature_sets(whole.feature_names):
        raise InputError(
            "profile: no feature that varies, so nothing to decide by",
            "give --index DIR so that retrieval features are computed, or profile with log-probabilities",
        )
    return whole


def _measurable(profile: Profile) -> Profile:
    """Leave out features that hold one value only, or that cannot be measured when a question is asked."""
    _, spread = mean_and_spread(profile.features)
    said: dict[str, str] = {}
    for name, width in zip(profile.feature_names, spread, strict=True):
        if name not in FEATURES:
            said[name] = f"feature {name}: not one that this program measures when a question is asked"
        elif not width > 0:
            said[name] = f"feature {name}: the same for every question"
        elif is_draft(name) and not profile.has_cost("direct"):
            said[name] = f"feature {name}: Direct's cost, which is the draft's, is not known for every question"
    kept = tuple(name for name in profile.feature_names if name not in said)
    return replace(profile.keep_features(kept), dropped=(*profile.dropped, *_gathered(said)))


def _gathered(said: dict[str, str]) -> list[str]:
    """One sentence for each reason, with the names it holds for."""
    reasons: dict[str, list[str]] = {}
    for name, sentence in said.items():
        reasons.setdefault(sentence.partition(": ")[2], []).append(name)
    return [f"feature {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def fit_candidates(lesson: Lesson) -> list[Candidate]:
    """Everything that may make the first decision: the networks, then the cheap rules."""
    names = feature_sets(lesson.profile.feature_names)
    found: list[Candidate] = []
    drafted: Drafted | None = None
    if FULL in names:
        full = network(FULL, names[FULL], lesson)
        found, drafted = [full], Drafted(full.columns, lesson.costed(names[FULL]))
    found.append(network(LEAN, names[LEAN], lesson))
    if drafted is not None:
        found.append(network(ASKING, names[LEAN], lesson, drafted))
    if "rule" in names:
        found.append(stump("rule", names["rule"], lesson))
    for kind, fit in (("linear_", linear), ("forest_", forest)):
        found += [fit(name, kept, lesson) for name, kept in names.items() if name.startswith(kind)]
    return found


def look_candidates(first: Sequence[Candidate], learned: SecondLearned, lesson: Lesson) -> list[Candidate]:
    """Each first decision but the asking one, and always retrieving, with the second decision after it."""
    bases = [*(one for one in first if one.name != ASKING), constant(RAG, lesson, "always_rag")]
    return [looking(base, learned, lesson) for base in bases]


def _second(lesson: Lesson, stages: int) -> tuple[SecondLearned | None, tuple[str, ...]]:
    if stages == 1:
        return None, ()
    if not can_look(lesson.profile):
        return None, ("second decision: needs RAG, RAG+CoT and features of the RAG answer (give --index DIR)",)
    return learn_second(lesson), ()


def _assemble(lesson: Lesson, candidates: Sequence[Candidate], learned: SecondLearned | None) -> Router:
    static = lesson.static()
    gains = {one.name: one.got - static for one in candidates}
    tiers = tuple(_tier(one, gains[one.name], lesson) for one in candidates)
    plain = [gains[tier.name] for tier in tiers if not tier.may_draft]
    groups = lesson.profile.groups
    return Router(
        tiers=tiers,
        columns=lesson.profile.columns,
        means=mean_outcome(lesson.plain),
        scale=lesson.scale,
        has_latency=lesson.plain.has_latency,
        source=lesson.profile.source.identity,
        trained_on=lesson.profile.text_keys(),
        guard=Guard(
            guard_of(list(gains.values()), lesson.held, lesson.caution, groups),
            guard_of(plain, lesson.held, lesson.caution, groups),
        ),
        second=learned.second if learned else None,
    )


def _tier(candidate: Candidate, gains: np.ndarray, lesson: Lesson) -> Tier:
    found = {one.head: one.temperature for one in candidate.calibration}
    temperatures = (found.get("need_rag"), found.get("need_cot"))
    gate = gate_of(gains, lesson.caution, lesson.profile.groups)
    return Tier(candidate.name, candidate.decider, gate, temperatures, candidate.looks)


def _record(one: Candidate) -> TierRecord:
    return TierRecord(one.name, one.decider.kind, one.decider.reader.names, one.fit, one.calibration)


def _second_record(router: Router, learned: SecondLearned | None) -> SecondRecord | None:
    """With the share of the nodes at which a tier that looks is the one to decide."""
    if learned is None or router.guard is None:
        return None
    best = np.stack([tier.gate.worth for tier in router.tiers if tier.gate.worth is not None]).argmax(axis=0)
    looks = np.array([tier.looks for tier in router.tiers])[best]
    opened = router.guard.any.gain > router.guard.any.caution * router.guard.any.error
    return SecondRecord(learned.second.reader.names, learned.error, learned.variance, float((looks & opened).mean()))


def tier_features(profile: Profile) -> tuple[str, ...]:
    """The features that the best network would read of this profile."""
    names = feature_sets(usable(profile).feature_names)
    return names.get(FULL, names[LEAN])
