"""Pooled outcomes -> the rows, gains, savings and frontier of an evaluation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from apportion.core.bootstrap import Bootstrap, Interval
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.contest import Part, Played, play, without_probes
from apportion.route.evaluation.evaluation import (
    BETTER,
    SAME,
    UNCLEAR,
    WORSE,
    AtWeights,
    Gain,
    Point,
    Row,
    Saving,
    Summary,
)
from apportion.route.evaluation.reach import reach
from apportion.route.profile.profile import Profile
from apportion.route.router.utility import Ints, Scale, Weights

NOT_BASELINES = ("router", "oracle", "best_static")


@dataclass(frozen=True, slots=True)
class Judge:
    """Turns what was played into rows and gains.

    Attributes:
        profile: the questions that were played, in the order of `part`.
    """

    profile: Profile
    scale: Scale
    part: Part
    bootstrap: Bootstrap

    @property
    def names(self) -> tuple[str, ...]:
        """Everyone who played at every weight of the grid."""
        return tuple(dict.fromkeys(name for name, _ in self.part.played))

    def value(self, name: str, weights: Weights) -> Float[ndarray, " n"]:
        """Utilities of a contender."""
        return self.part.played[name, weights].utility(weights, self.scale)

    def row(self, name: str, weights: Weights) -> Row:
        played, value = self.part.played[name, weights], self.value(name, weights)
        return Row(
            quality=float(played.quality.mean()),
            tokens=float(played.tokens.mean()),
            price=float(played.charged.mean()) if self.scale.price else None,
            latency_ms=mean_or_none(played.latency_ms),
            utility=float(value.mean()),
            regret=float((self.value("oracle", weights) - value).mean()),
        )

    def gain(self, over: str, weights: Weights) -> Gain:
        """Router minus another contender."""
        difference = self.value("router", weights) - self.value(over, weights)
        return judged(over, self.bootstrap.interval(difference))

    def at(self, weights: Weights) -> AtWeights:
        """Everything at one pair of weights."""
        static = [name for name in STRATEGIES if name in self.names]
        rows = {name: self.row(name, weights) for name in self.names}
        hindsight = max(static, key=lambda name: rows[name].utility)
        gap = rows["oracle"].utility - rows["best_static"].utility
        gain = self.gain("best_static", weights)
        chosen = np.unique(self.part.columns["best_static", weights])
        values = {name: self.value(name, weights) for name in self.names}
        return AtWeights(
            token_weight=weights.token,
            latency_weight=weights.latency,
            strategies={name: rows[name] for name in static},
            baselines={name: rows[name] for name in self.names if name not in (*static, *NOT_BASELINES)},
            best_static=rows["best_static"],
            best_static_names=tuple(STRATEGIES[column] for column in chosen),
            best_static_hindsight=rows[hindsight],
            best_static_hindsight_name=hindsight,
            oracle=rows["oracle"],
            router=rows["router"],
            gain=gain,
            gain_hindsight=self.gain(hindsight, weights),
            gap_closed=gain.interval.mean / gap if gap > 1e-9 else None,
            tiers={tier: count / self.profile.n for tier, count in self.part.tiers[weights].items()},
            reach=reach(values, gain, self.bootstrap),
        )


def mean_or_none(values: Float[ndarray, " n"]) -> float | None:
    """The mean, or None when some value is missing."""
    return float(values.mean()) if np.isfinite(values).all() else None


def judged(over: str, interval: Interval) -> Gain:
    """What an interval of a difference shows."""
    if interval.low == interval.high == 0:
        return Gain(over, interval, SAME)
    verdict = BETTER if interval.low > 0 else WORSE if interval.high < 0 else UNCLEAR
    return Gain(over, interval, verdict)


def summarise(judge: Judge, rows: Sequence[AtWeights]) -> Summary:
    """Counts over the weights and the first line of the report."""
    grid = [Weights(row.token_weight, row.latency_weight) for row in rows]
    mean = {name: np.mean([judge.value(name, w) for w in grid], axis=0) for name in judge.names}
    closed = [row.gap_closed for row in rows if row.gap_closed is not None]
    gaps = sum(row.oracle.utility - row.best_static.utility for row in rows)
    gains = sum(row.router.utility - row.best_static.utility for row in rows)
    reachable = [row for row in rows if row.reach.gain.mean > 0]
    reach_total = sum(row.reach.gain.mean for row in reachable)
    return Summary(
        weights=len(rows),
        beaten=sum(row.gain.verdict == BETTER for row in rows),
        worse=sum(row.gain.verdict == WORSE for row in rows),
        worse_than_hindsight=sum(row.gain_hindsight.verdict == WORSE for row in rows),
        gap_closed_mean=float(np.mean(closed)) if closed else None,
        gap_closed_total=gains / gaps if gaps > 1e-9 else None,
        reach_closed=sum(row.gain.interval.mean for row in reachable) / reach_total if reach_total > 1e-9 else None,
        verdicts=dict(Counter(row.reach.verdict for row in rows)),
        mean_utility={name: float(value.mean()) for name, value in mean.items()},
        mean_gain={
            name: judge.bootstrap.interval(mean["router"] - value) for name, value in mean.items() if name != "router"
        },
        first_line=first_line(rows),
    )


def first_line(rows: Sequence[AtWeights]) -> str:
    """Says at how many weights the router does not beat the best static pipeline, and at which, if any."""
    failed = [row for row in rows if row.gain.verdict != BETTER]
    if not failed:
        return f"The router beats the best static pipeline at all {len(rows)} weights (95 % intervals)."
    worse = [row for row in failed if row.gain.verdict == WORSE]
    said = f"at {len(worse)} weights it is worse: {_pairs(worse)}" if worse else "at no weight is it worse"
    return (
        f"THE ROUTER DOES NOT BEAT THE BEST STATIC PIPELINE at {len(failed)} of {len(rows)} weights; {said} "
        f"(95 % intervals). Not beaten at the (token, latency) weights {_pairs(failed)}."
    )


def _pairs(rows: Sequence[AtWeights]) -> str:
    return ", ".join(f"({row.token_weight:g}, {row.latency_weight:g})" for row in rows)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of saving: of one cost, or of several where the smallest counts."""

    name: str
    costs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the questions: all, or those of one data set."""

    name: str
    rows: Ints


def savings(judge: Judge, grid: Sequence[Weights]) -> tuple[Saving, ...]:
    """Per family and over all, the largest saving of each kind at no lower mean quality."""
    kinds = [Kind("tokens", ("tokens",))]
    if judge.scale.price:
        kinds.append(Kind("price", ("charged",)))
    if judge.profile.has_latency:
        kinds += [Kind("latency", ("latency_ms",)), Kind("both", ("tokens", "latency_ms"))]
    return tuple(_saving(judge, grid, group, kind) for group in _groups(judge.profile) for kind in kinds)


def _groups(profile: Profile) -> list[Group]:
    names = np.array(profile.dataset)
    families = [Group(str(name), np.flatnonzero(names == name)) for name in np.unique(names)]
    return [Group("all", np.arange(profile.n)), *families]


def _saving(judge: Judge, grid: Sequence[Weights], group: Group, kind: Kind) -> Saving:
    """At the weights where it is largest."""
    reference = _always(judge, judge.scale.strategy).select(group.rows)
    best: tuple[float, Weights] | None = None
    for weights in grid:
        played = judge.part.played["router", weights].select(group.rows)
        saved = min(1 - getattr(played, c).mean() / getattr(reference, c).mean() for c in kind.costs)
        kept = played.quality.mean() >= reference.quality.mean() - 1e-12
        if kept and (best is None or saved > best[0]):
            best = (float(saved), weights)
    found = (group.name, len(group.rows), kind.name, judge.scale.strategy)
    if best is None:
        return Saving(*found, None, None, None, None)
    saved, weights = best
    change = judge.part.played["router", weights].quality[group.rows] - reference.quality
    bootstrap = Bootstrap(len(group.rows), 0, groups=judge.profile.groups[group.rows])
    return Saving(*found, saved, weights.token, weights.latency, bootstrap.interval(change))


def _always(judge: Judge, name: str) -> Played:
    """Always one strategy, nothing done before."""
    columns = np.full(judge.profile.n, STRATEGIES.index(name))
    return play(judge.profile, without_probes(columns), judge.scale.price)


def frontier(judge: Judge, extra: Sequence[Weights]) -> dict[str, tuple[Point, ...]]:
    """Points of the router and the oracle at the extra weights, and of each static strategy."""

    def point(played: Played, weights: Weights) -> Point:
        latency = mean_or_none(played.latency_ms)
        return Point(weights.token, weights.latency, float(played.quality.mean()), float(played.tokens.mean()), latency)

    found = {name: tuple(point(judge.part.played[name, w], w) for w in extra) for name in ("router", "oracle")}
    for column in judge.profile.columns:
        found[STRATEGIES[column]] = (point(_always(judge, STRATEGIES[column]), Weights(0.0)),)
    return found
