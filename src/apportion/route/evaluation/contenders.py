"""What is compared: anything that chooses a strategy per question at given cost weights, and its cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from apportion.core.seeds import stream
from apportion.route.ask.strategy import DIRECT, STRATEGIES, USES_RAG
from apportion.route.profile.profile import Bools, Floats, Profile
from apportion.route.router.router import Router
from apportion.route.router.train import needs_search
from apportion.route.router.utility import Ints, Scale, Weights, best_static, cost, labels, utility


@dataclass(frozen=True, slots=True)
class Choice:
    """[n] columns chosen, which probes were made before choosing, and a router's deciding tiers."""

    columns: Ints
    draft: Bools
    search: Bools
    tiers: tuple[str, ...] = ()


@runtime_checkable
class Contender(Protocol):
    """Chooses for questions it was not fitted on."""

    def choose(self, profile: Profile, weights: Weights) -> Choice: ...


Fit = Callable[[Profile], Contender]


@dataclass(frozen=True, slots=True)
class Played:
    """What the choices gave: [n] quality, tokens and latency_ms (NaN where unknown), probes counted."""

    quality: Floats
    tokens: Floats
    latency_ms: Floats

    def utility(self, weights: Weights, scale: Scale) -> Floats:
        """[n] utilities on a scale."""
        value = self.quality - weights.token * self.tokens / scale.tokens
        if weights.latency:
            value = value - weights.latency * self.latency_ms / (scale.latency_ms or np.nan)
        return value


def play(profile: Profile, choice: Choice) -> Played:
    """Look the chosen outcomes up and add the probes: a draft on routes other than Direct, a search on those
    that would not have searched."""
    rows = np.arange(profile.n)
    drafted = choice.draft & (choice.columns != DIRECT)
    searched = choice.search & ~np.array(USES_RAG)[choice.columns]
    draft_tokens = np.where(drafted, profile.tokens[:, DIRECT], 0.0)
    draft_ms = np.where(drafted, profile.latency_ms[:, DIRECT], 0.0)
    search_ms = np.where(searched, np.nan_to_num(profile.retrieval_ms), 0.0)
    return Played(
        quality=profile.quality[rows, choice.columns],
        tokens=profile.tokens[rows, choice.columns] + draft_tokens,
        latency_ms=profile.latency_ms[rows, choice.columns] + draft_ms + search_ms,
    )


def without_probes(columns: Ints) -> Choice:
    """A choice made blindly."""
    none = np.zeros(len(columns), dtype=bool)
    return Choice(columns, none, none)


@dataclass(frozen=True, slots=True)
class Always:
    """One strategy for every question."""

    column: int

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        return without_probes(np.full(profile.n, self.column))


@dataclass(frozen=True, slots=True)
class BestStatic:
    """The strategy with the highest mean utility on the questions given here, one for each weights."""

    seen: Profile
    scale: Scale

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        column = best_static(cost(self.seen, self.scale), weights)
        return without_probes(np.full(profile.n, column))


@dataclass(frozen=True, slots=True)
class RouterStatic:
    """The best static strategy as a saved router remembers it from its training questions."""

    router: Router

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        return without_probes(np.full(profile.n, self.router.static_column(weights)))


@dataclass(frozen=True, slots=True)
class Oracle:
    """The best strategy of each question in hindsight, no probes: what no router can pass."""

    scale: Scale

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        costed = cost(profile, self.scale)
        return without_probes(labels(utility(costed, weights), costed.tokens))


@dataclass(frozen=True, slots=True)
class RandomChoice:
    """Any strategy present, equally probable."""

    seed: int

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        drawn = stream(self.seed, "random", str(weights)).choice(profile.columns, profile.n)
        return without_probes(np.asarray(drawn))


@dataclass(frozen=True, slots=True)
class Routed:
    """A router, its probes counted for the tier that decided each question."""

    router: Router

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        columns, tiers = self.router.decide_many(profile.features, profile.feature_names, weights)
        made = np.array(tiers)
        draft, search = np.zeros(profile.n, dtype=bool), np.zeros(profile.n, dtype=bool)
        for tier in self.router.tiers:
            draft |= (made == tier.name) & bool(tier.draft_names)
            search |= (made == tier.name) & needs_search(tier.policy.names)
        return Choice(columns, draft, search, tiers)


@dataclass(frozen=True, slots=True)
class BestOf:
    """Several routers of restricted choice; at each weights the one with the highest held-out utility."""

    routers: tuple[Router, ...]

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        best = max(self.routers, key=lambda router: expected_utility(router, weights))
        return Routed(best).choose(profile, weights)


def expected_utility(router: Router, weights: Weights) -> float:
    """Training utility of the router's best static strategy plus its held-out gain where a gate is open."""
    quality, tokens, latency = router.means[:, router.static_column(weights)]
    static = float(quality - weights.token * tokens - weights.latency * latency)
    tier = router.tier_at(weights)
    return static + (tier.gate.at(weights)[0] if tier else 0.0)


def names_of_strategies(profile: Profile) -> dict[str, Contender]:
    """Always each of the strategies present."""
    return {STRATEGIES[column]: Always(column) for column in profile.columns}
