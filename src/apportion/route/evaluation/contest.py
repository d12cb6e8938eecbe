"""Contenders play every question they were not fitted on, at every pair of weights; what they did is counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from apportion.core.seeds import stream
from apportion.route.ask.features import needs_of
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.profile import Profile
from apportion.route.router.price import Price
from apportion.route.router.router import Router
from apportion.route.router.spending import Done, spent
from apportion.route.router.utility import Ints, Scale, Weights, best_static, cost, labels, utility

PROBED = ("router", "oracle")  # also played at the weights that only the frontier needs


@dataclass(frozen=True, slots=True)
class Choice:
    """[n] columns chosen, what was done before the last call, and a router's deciding tiers."""

    columns: Int[ndarray, " n"]
    done: Done
    tiers: tuple[str, ...] = ()


@runtime_checkable
class Contender(Protocol):
    """Chooses for questions it was not fitted on."""

    def choose(self, profile: Profile, weights: Weights) -> Choice: ...


Field = Mapping[str, Contender]


@dataclass(frozen=True, slots=True)
class Played:
    """What the choices gave, all that was done counted.

    Attributes:
        charged: what token weights weigh: the price, or the tokens. latency_ms: NaN where unknown.
    """

    quality: Float[ndarray, " n"]
    tokens: Float[ndarray, " n"]
    charged: Float[ndarray, " n"]
    latency_ms: Float[ndarray, " n"]

    def utility(self, weights: Weights, scale: Scale) -> Float[ndarray, " n"]:
        """Utilities on a scale."""
        value = self.quality - weights.token * self.charged / scale.tokens
        if weights.latency:
            value = value - weights.latency * self.latency_ms / (scale.latency_ms or np.nan)
        return value

    def select(self, rows: Ints) -> "Played":
        """The same for some questions."""
        return Played(*(getattr(self, one.name)[rows] for one in fields(self)))


def play(profile: Profile, choice: Choice, price: Price | None = None) -> Played:
    """Look the chosen outcomes up, with what was done before."""
    rows, total = np.arange(profile.n), spent(profile, choice.done, price)
    parts = (profile.quality, total.tokens, total.charged, total.latency_ms)
    return Played(*(part[rows, choice.columns] for part in parts))


@dataclass(frozen=True, slots=True)
class Part:
    """What the contenders of one split of the questions did: of `rows` of the profile.

    Attributes:
        played, columns: by contender and weights. tiers: by weights, how many questions each tier decided.
        calibration: of the heads of the router trained for it. features: what its best network reads.
    """

    rows: Int[ndarray, " n"]
    played: dict[tuple[str, Weights], Played]
    columns: dict[tuple[str, Weights], Ints]
    tiers: dict[Weights, dict[str, int]]
    calibration: tuple[dict[str, object], ...] = ()
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Board:
    """Where a contest is held: the weights, and what they weigh.

    Attributes:
        grid: the weights at which everyone plays. extra: those at which only the router and oracle do.
    """

    scale: Scale
    grid: tuple[Weights, ...]
    extra: tuple[Weights, ...] = ()

    @property
    def all(self) -> tuple[Weights, ...]:
        """Both, each once."""
        return tuple(dict.fromkeys((*self.grid, *self.extra)))


def hold(profile: Profile, rows: Ints, field: Field, board: Board) -> Part:
    """Play some rows of a profile at all weights."""
    asked = profile.select(rows)
    part = Part(rows, {}, {}, {})
    for weights in board.all:
        for name, contender in field.items():
            if weights not in board.grid and name not in PROBED:
                continue
            choice = contender.choose(asked, weights)
            part.played[name, weights] = play(asked, choice, board.scale.price)
            part.columns[name, weights] = choice.columns
            if name == "router":
                part.tiers[weights] = dict(Counter(choice.tiers))
    return part


def pool(parts: Sequence[Part]) -> Part:
    """All parts as one, its rows ascending; a contender that is not in every part is left out."""
    order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
    keys = [key for key in parts[0].played if all(key in part.played for part in parts)]
    played = {key: _joined([part.played[key] for part in parts], order) for key in keys}
    columns = {key: np.concatenate([part.columns[key] for part in parts])[order] for key in keys}
    tiers: dict[Weights, dict[str, int]] = {}
    for part in parts:
        for weights, counts in part.tiers.items():
            total = Counter(tiers.get(weights, {}))
            total.update(counts)
            tiers[weights] = dict(total)
    return Part(
        rows=np.sort(np.concatenate([part.rows for part in parts])),
        played=played,
        columns=columns,
        tiers=tiers,
        calibration=tuple(one for part in parts for one in part.calibration),
        features=parts[0].features,
    )


def _joined(parts: Sequence[Played], order: Ints) -> Played:
    return Played(*(np.concatenate([getattr(part, one.name) for part in parts])[order] for one in fields(Played)))


def without_probes(columns: Ints) -> Choice:
    """A choice made blindly."""
    return Choice(columns, Done.for_all(len(columns)))


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
    """A router, what it does counted for the tier that decided each question."""

    router: Router

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        found = self.router.decide_many(profile.features, profile.feature_names, weights)
        made = np.array(found.tiers)
        draft, search = np.zeros(profile.n, dtype=bool), np.zeros(profile.n, dtype=bool)
        for tier in self.router.tiers:
            needs = needs_of(tier.names)
            draft |= (made == tier.name) & needs.draft
            search |= (made == tier.name) & needs.search
        return Choice(found.columns, Done(draft, search, found.looked), found.tiers)


@dataclass(frozen=True, slots=True)
class BestOf:
    """Several routers of restricted choice; at each weights the one with the highest held-out utility."""

    routers: tuple[Router, ...]

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        best = max(self.routers, key=lambda router: expected_utility(router, weights))
        return Routed(best).choose(profile, weights)


def expected_utility(router: Router, weights: Weights) -> float:
    """Training utility of the router's best static strategy plus its held-out gain where it may decide."""
    quality, tokens, latency = router.means[:, router.static_column(weights)]
    static = float(quality - weights.token * tokens - weights.latency * latency)
    tier = router.tier_at(weights)
    return static + (tier.gate.at(weights)[0] if tier else 0.0)


def names_of_strategies(profile: Profile) -> dict[str, Contender]:
    """Always each of the strategies present."""
    return {STRATEGIES[column]: Always(column) for column in profile.columns}
