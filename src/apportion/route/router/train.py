"""A profile -> a router: cross-fitted members, early stop on held-out regret, a gate per tier, calibration.

Each of K folds is held out from its own members. The number of steps is the one with the smallest held-out
regret (over the folds other than a question's own, when that question's held-out decision is judged), so what
the gate and the calibration see is unseen in training and in stopping. The router is all members together.
"""

from dataclasses import dataclass, replace

import numpy as np

from apportion.core.errors import InputError
from apportion.route.profile.profile import Floats, Profile
from apportion.route.router.calibration import Calibration, calibrate_heads
from apportion.route.router.draft import Drafted
from apportion.route.router.fit import Fitted, TrainingPlan, fit_members
from apportion.route.router.folds import others, split_folds
from apportion.route.router.gate import LATENCY_NODES, TOKEN_NODES, Gate, mean_and_error
from apportion.route.router.policy import (
    Layers,
    Policy,
    Singles,
    choose,
    encode_weights,
    mean_and_spread,
    mean_outcome,
)
from apportion.route.router.router import ASKING, FULL, LEAN, Router, Tier
from apportion.route.router.utility import (
    LATENCY_WEIGHTS,
    TOKEN_WEIGHTS,
    Costed,
    Ints,
    Scale,
    Weights,
    best_static,
    cost,
    scale_of,
    utility,
    weight_grid,
)

CAUTION = 1.64


@dataclass(frozen=True, slots=True)
class TierRecord:
    """How one tier came about: when it stopped, its held-out regret at each check, its heads' calibration."""

    name: str
    features: tuple[str, ...]
    stopped_at: int
    checks: tuple[int, ...]
    regret: tuple[float, ...]
    calibration: tuple[Calibration, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """A router and how it came about; `dropped` is everything of the profile that could not be used."""

    router: Router
    tiers: tuple[TierRecord, ...]
    plan: TrainingPlan
    seed: int
    questions: int
    dropped: tuple[str, ...]


def train_router(
    profile: Profile,
    plan: TrainingPlan | None = None,
    *,
    seed: int = 0,
    caution: float = CAUTION,
    scale: Scale | None = None,
) -> Trained:
    """Train the tiers that the profile's features allow.

    Args:
        caution: standard errors by which a policy must beat the best static strategy on held-out questions
            before it may decide.
        scale: what a weight of 1 refers to; the profile's own without it.

    Raises:
        InputError: one strategy only, too few questions, or no feature that varies.
    """
    plan = plan or TrainingPlan()
    whole = _varying(profile.only_complete())
    if len(whole.columns) < 2:
        raise InputError(f"profile: only {whole.strategies[0]} was recorded, expected at least 2 strategies")
    scale = scale or scale_of(whole)
    plain = cost(whole, scale)
    fitted = _fit_tiers(whole, (plain, scale), plan, seed, caution)
    router = Router(
        tiers=tuple(tier for tier, _ in fitted),
        columns=whole.columns,
        means=mean_outcome(plain),
        scale=scale,
        has_latency=plain.has_latency,
        source=_source(whole),
        trained_on=whole.keys(),
    )
    return Trained(router, tuple(record for _, record in fitted), plan, seed, whole.n, whole.dropped)


def _fit_tiers(
    profile: Profile, unprobed: tuple[Costed, Scale], plan: TrainingPlan, seed: int, caution: float
) -> list[tuple[Tier, TierRecord]]:
    """Full and lean; and, where there are both, one that asks for the draft only where it is worth it."""
    found: list[tuple[Tier, TierRecord]] = []
    drafted: Drafted | None = None
    names = tier_features(profile)
    for name, features in names.items():
        part = profile.keep_features(features)
        tier, record, columns = _fit_tier(name, part, unprobed, plan, seed, caution, None)
        found.append((tier, record))
        if name == FULL:
            drafted = Drafted(columns, probed_cost(part, unprobed[1], features))
    if drafted is not None and LEAN in names:
        part = profile.keep_features(names[LEAN])
        tier, record, _ = _fit_tier(ASKING, part, unprobed, plan, seed, caution, drafted)
        found.append((tier, record))
    return found


def tier_features(profile: Profile) -> dict[str, tuple[str, ...]]:
    """Feature names of each tier; draft features need Direct outcomes, whose cost is the draft's."""
    lean = tuple(name for name in profile.feature_names if not is_draft(name))
    full = profile.feature_names if profile.has_draft_cost else lean
    tiers = {FULL: full} if len(full) > len(lean) else {}
    if lean:
        tiers[LEAN] = lean
    if not tiers:
        raise InputError(
            "profile: no feature that varies, so nothing to decide by",
            "give --index DIR so that retrieval features are computed, or profile with log-probabilities",
        )
    return tiers


def is_draft(name: str) -> bool:
    """Whether a feature needs the draft."""
    return name.startswith("draft_")


def needs_search(names: tuple[str, ...]) -> bool:
    """Whether any of the features needs a search."""
    return any(not is_draft(name) and not name.startswith("question_") for name in names)


def probed_cost(profile: Profile, scale: Scale, names: tuple[str, ...]) -> Costed:
    """Costs of deciding by these features, their probes counted."""
    return cost(profile, scale, draft=any(map(is_draft, names)), search=needs_search(names))


def _varying(profile: Profile) -> Profile:
    """Leave out features that hold one value only, saying so."""
    _, spread = mean_and_spread(profile.features)
    flat = tuple(n for n, s in zip(profile.feature_names, spread, strict=True) if not s > 0)
    kept = tuple(name for name in profile.feature_names if name not in flat)
    said = tuple(f"feature {name}: the same for every question" for name in flat)
    if not profile.has_draft_cost and any(map(is_draft, kept)):
        said += ("draft features: Direct's cost, which is the draft's, is not known for every question",)
    return replace(profile.keep_features(kept), dropped=(*profile.dropped, *said))


def _source(profile: Profile) -> dict[str, str | int]:
    source = profile.source
    return {"model": source.model, "corpus": source.corpus, "prompts": source.prompts, "k": source.k}


def _fit_tier(
    name: str,
    profile: Profile,
    unprobed: tuple[Costed, Scale],
    plan: TrainingPlan,
    seed: int,
    caution: float,
    drafted: Drafted | None,
) -> tuple[Tier, TierRecord, Ints]:
    """The tier, how it came about, and its held-out decisions at every node of the gate."""
    plain, scale = unprobed
    costed = probed_cost(profile, scale, profile.feature_names)
    held = split_folds(profile.dataset, plan.folds, seed)
    mean, spread = mean_and_spread(profile.features)
    blank = Policy(
        names=profile.feature_names,
        mean=mean,
        spread=spread,
        columns=profile.columns,
        means=mean_outcome(costed),
        layers=Layers(*(np.zeros(0, np.float32),) * 6),
    )
    inputs = blank.standardise(profile.features)
    members = [others(rows, profile.n) for rows in held for _ in range(plan.seeds)]
    fitted = fit_members(inputs, costed, members, plan, seed, drafted)
    regrets = _regrets(fitted, blank, inputs, (costed, drafted), held, plan.seeds)
    stop = int(regrets.mean(axis=1).argmin())
    own = [int(np.delete(regrets, fold, axis=1).mean(axis=1).argmin()) for fold in range(len(held))]
    unseen = _Unseen(fitted, blank, inputs, held, own, plan.seeds)
    gate, columns = _gate(unseen, (costed, drafted), plain, caution)
    heads = _calibrations(unseen, costed)
    policy = replace(blank, layers=fitted.layers[stop])
    found = {one.head: one.temperature for one in heads}
    tier = Tier(name, policy, gate, (found.get("need_rag"), found.get("need_cot")))
    curve = tuple(float(value) for value in regrets.mean(axis=1))
    record = TierRecord(name, profile.feature_names, fitted.steps[stop], fitted.steps, curve, heads)
    return tier, record, columns


def _fold_logits(layers: Layers, fold: int, seeds: int, shown: Floats) -> Floats:
    """[n, 2] mean logits of the members that did not see this fold."""
    members = np.arange(fold * seeds, (fold + 1) * seeds)
    return np.asarray(layers.select(members).logits(shown.astype(np.float32)).mean(axis=0))


def _asked(inputs: Singles, weights: Weights, means: Floats) -> Floats:
    encoded = encode_weights(np.array([[weights.token, weights.latency]]), means)
    return np.concatenate([inputs, encoded.repeat(len(inputs), axis=0)], axis=1)


Outcomes = tuple[Costed, Drafted | None]


def _got(logits: Floats, weights: Weights, outcomes: Outcomes, rows: Ints) -> tuple[Floats, Ints]:
    """Utilities of what the logits choose for some questions, and the columns chosen without a draft."""
    costed, drafted = outcomes
    chosen = choose(logits, costed.columns)
    got = utility(costed.select(rows), weights)[np.arange(len(rows)), chosen]
    if drafted is not None:
        got = np.where(logits[:, 2] > 0, drafted.utility(weights)[rows], got)
    return got, chosen


def _regrets(
    fitted: Fitted, blank: Policy, inputs: Singles, outcomes: Outcomes, held: list[Ints], seeds: int
) -> Floats:
    """[checks, folds] mean regret on held-out questions over a grid of weights, scaled as in the loss."""
    found, costed = np.zeros((len(fitted.steps), len(held))), outcomes[0]
    grid = weight_grid(TOKEN_WEIGHTS, LATENCY_WEIGHTS, timed=costed.has_latency)
    for fold, rows in enumerate(held):
        for weights in grid:
            best = utility(costed.select(rows), weights).max(axis=1)
            shown = _asked(inputs[rows], weights, blank.means)
            share = 1 / (len(grid) * (1 + weights.token + weights.latency))
            for check, layers in enumerate(fitted.layers):
                got, _ = _got(_fold_logits(layers, fold, seeds, shown), weights, outcomes, rows)
                found[check, fold] += share * float((best - got).mean())
    return found


@dataclass(frozen=True, slots=True)
class _Unseen:
    """Logits for questions by the members that did not see them, stopped by the other folds."""

    fitted: Fitted
    blank: Policy
    inputs: Singles
    held: list[Ints]
    own_check: list[int]
    seeds: int

    def logits(self, weights: Weights) -> Floats:
        """[n, heads] at these weights."""
        out = np.zeros((len(self.inputs), self.fitted.layers[0].heads))
        for fold, rows in enumerate(self.held):
            shown = _asked(self.inputs[rows], weights, self.blank.means)
            out[rows] = _fold_logits(self.fitted.layers[self.own_check[fold]], fold, self.seeds, shown)
        return out


def _gate(unseen: _Unseen, outcomes: Outcomes, plain: Costed, caution: float) -> tuple[Gate, Ints]:
    """Held-out gain over the best static strategy at every node, and the columns [n, ...] chosen there."""
    latencies = LATENCY_NODES if plain.has_latency else (0.0,)
    table = np.zeros((2, len(TOKEN_NODES), len(latencies)))
    columns = np.zeros((plain.n, len(TOKEN_NODES), len(latencies)), dtype=np.int64)
    for i, token in enumerate(TOKEN_NODES):
        for j, latency in enumerate(latencies):
            weights = Weights(token, latency)
            got, columns[:, i, j] = _got(unseen.logits(weights), weights, outcomes, np.arange(plain.n))
            static = utility(plain, weights)[:, best_static(plain, weights)]
            table[:, i, j] = mean_and_error(got - static)
    return Gate(TOKEN_NODES, latencies, table[0], table[1], caution), columns


def _calibrations(unseen: _Unseen, costed: Costed) -> tuple[Calibration, ...]:
    """The heads on held-out questions, pooled over the token weights."""
    grid = weight_grid(TOKEN_WEIGHTS, (0.0,), timed=False)
    logits = np.concatenate([unseen.logits(weights) for weights in grid])
    return calibrate_heads(logits, np.concatenate([utility(costed, weights) for weights in grid]))
