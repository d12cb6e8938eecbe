"""Pooled outcomes -> the rows, gains, savings and frontier of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apportion.core.bootstrap import Bootstrap, Interval
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.contenders import Played
from apportion.route.evaluation.contest import Results
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
from apportion.route.profile.profile import Floats, Profile
from apportion.route.router.utility import Ints, Scale, Weights

NOT_BASELINES = ("router", "oracle", "best_static")


@dataclass(frozen=True, slots=True)
class Judge:
    """Turns pooled outcomes of one profile into rows and gains."""

    profile: Profile
    scale: Scale
    results: Results
    bootstrap: Bootstrap

    def value(self, name: str, weights: Weights) -> Floats:
        """[n] utilities of a contender."""
        return self.results.played[name, weights].utility(weights, self.scale)

    def row(self, name: str, weights: Weights) -> Row:
        played, value = self.results.played[name, weights], self.value(name, weights)
        return Row(
            quality=float(played.quality.mean()),
            tokens=float(played.tokens.mean()),
            latency_ms=mean_or_none(played.latency_ms),
            utility=float(value.mean()),
            regret=float((self.value("oracle", weights) - value).mean()),
        )

    def gain(self, over: str, weights: Weights) -> Gain:
        """Router minus another contender."""
        difference = self.value("router", weights) - self.value(over, weights)
        return judged(over, self.bootstrap.interval(difference))

    def at(self, weights: Weights, contenders: Sequence[str]) -> AtWeights:
        """Everything at one pair of weights."""
        static = [name for name in STRATEGIES if name in contenders]
        rows = {name: self.row(name, weights) for name in contenders}
        hindsight = max(static, key=lambda name: rows[name].utility)
        gap = rows["oracle"].utility - rows["best_static"].utility
        gain = rows["router"].utility - rows["best_static"].utility
        chosen = np.unique(self.results.columns["best_static", weights])
        baselines = [n for n in contenders if n not in static and n not in NOT_BASELINES]
        return AtWeights(
            token_weight=weights.token,
            latency_weight=weights.latency,
            strategies={name: rows[name] for name in static},
            baselines={name: rows[name] for name in baselines},
            best_static=rows["best_static"],
            best_static_names=tuple(STRATEGIES[column] for column in chosen),
            best_static_hindsight=rows[hindsight],
            best_static_hindsight_name=hindsight,
            oracle=rows["oracle"],
            router=rows["router"],
            gain=self.gain("best_static", weights),
            gain_hindsight=self.gain(hindsight, weights),
            gap_closed=gain / gap if gap > 1e-9 else None,
            tiers=self.results.tiers[weights],
        )


def mean_or_none(values: Floats) -> float | None:
    """The mean, or None when some value is missing."""
    return float(values.mean()) if np.isfinite(values).all() else None


def judged(over: str, interval: Interval) -> Gain:
    """What an interval of a difference shows."""
    if interval.low == interval.high == 0:
        return Gain(over, interval, SAME)
    verdict = BETTER if interval.low > 0 else WORSE if interval.high < 0 else UNCLEAR
    return Gain(over, interval, verdict)


def summarise(judge: Judge, rows: Sequence[AtWeights], contenders: Sequence[str]) -> Summary:
    """Counts over the weights and the first line of the report."""
    grid = [Weights(row.token_weight, row.latency_weight) for row in rows]
    mean = {name: np.mean([judge.value(name, w) for w in grid], axis=0) for name in contenders}
    closed = [row.gap_closed for row in rows if row.gap_closed is not None]
    gaps = sum(row.oracle.utility - row.best_static.utility for row in rows)
    gains = sum(row.router.utility - row.best_static.utility for row in rows)
    return Summary(
        weights=len(rows),
        beaten=sum(row.gain.verdict == BETTER for row in rows),
        worse=sum(row.gain.verdict == WORSE for row in rows),
        worse_than_hindsight=sum(row.gain_hindsight.verdict == WORSE for row in rows),
        gap_closed_mean=float(np.mean(closed)) if closed else None,
        gap_closed_total=gains / gaps if gaps > 1e-9 else None,
        mean_utility={name: float(value.mean()) for name, value in mean.items()},
        mean_gain={
            name: judge.bootstrap.interval(mean["router"] - value) for name, value in mean.items() if name != "router"
        },
        first_line=first_line(rows),
    )


def first_line(rows: Sequence[AtWeights]) -> str:
    """Says at which weights the router does not beat the best static pipeline, if there are any."""
    failed = [row for row in rows if row.gain.verdict != BETTER]
    if not failed:
        return f"The router beats the best static pipeline at all {len(rows)} weights (95 % intervals)."
    shown = ", ".join(f"({row.token_weight:g}, {row.latency_weight:g})" for row in failed)
    worse = sum(row.gain.verdict == WORSE for row in failed)
    return (
        f"THE ROUTER DOES NOT BEAT THE BEST STATIC PIPELINE at {len(failed)} of {len(rows)} weights, and is "
        f"worse at {worse} (95 % intervals; (token, latency) weights: {shown})."
    )


def savings(judge: Judge, grid: Sequence[Weights]) -> tuple[Saving, ...]:
    """Per family and over all, the largest savings at no lower mean quality: tokens, latency, and both."""
    profile = judge.profile
    names = np.array(profile.dataset)
    groups = {"all": np.ones(profile.n, dtype=bool)}
    groups |= {str(family): names == family for family in np.unique(names)}
    kinds: dict[str, tuple[str, ...]] = {"tokens": ("tokens",)}
    if profile.has_latency:
        kinds |= {"latency": ("latency_ms",), "both": ("tokens", "latency_ms")}
    return tuple(
        _saving(judge, grid, family, np.flatnonzero(mask), (what, costs))
        for family, mask in groups.items()
        for what, costs in kinds.items()
    )


def always(profile: Profile, name: str) -> Played:
    """Always one strategy, no probes."""
    column = STRATEGIES.index(name)
    return Played(profile.quality[:, column], profile.tokens[:, column], profile.latency_ms[:, column])


def _saving(
    judge: Judge, grid: Sequence[Weights], family: str, rows: Ints, kind: tuple[str, tuple[str, ...]]
) -> Saving:
    """The smaller of the savings in the costs of this kind, at the weights where that is largest."""
    what, costs = kind
    reference = always(judge.profile, judge.scale.strategy)
    best: tuple[float, Weights] | None = None
    for weights in grid:
        played = judge.results.played["router", weights]
        saved = min(1 - getattr(played, c)[rows].mean() / getattr(reference, c)[rows].mean() for c in costs)
        kept = played.quality[rows].mean() >= reference.quality[rows].mean() - 1e-12
        if kept and (best is None or saved > best[0]):
            best = (float(saved), weights)
    if best is None:
        return Saving(family, len(rows), what, judge.scale.strategy, None, None, None, None)
    saved, weights = best
    change = judge.results.played["router", weights].quality[rows] - reference.quality[rows]
    interval = Bootstrap(len(rows), 0).interval(change)
    return Saving(family, len(rows), what, judge.scale.strategy, saved, weights.token, weights.latency, interval)


def frontier(judge: Judge, extra: Sequence[Weights]) -> dict[str, tuple[Point, ...]]:
    """Points of the router and the oracle at the extra weights, and of each static strategy."""

    def point(played: Played, weights: Weights) -> Point:
        latency = mean_or_none(played.latency_ms)
        return Point(weights.token, weights.latency, float(played.quality.mean()), float(played.tokens.mean()), latency)

    found = {name: tuple(point(judge.results.played[name, w], w) for w in extra) for name in ("router", "oracle")}
    for column in judge.profile.columns:
        found[STRATEGIES[column]] = (point(always(judge.profile, STRATEGIES[column]), Weights(0.0)),)
    return found
