"""Contenders play every question they were not fitted on, at every pair of weights."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apportion.route.evaluation.contenders import Contender, Played, play
from apportion.route.profile.profile import Profile
from apportion.route.router.utility import Ints, Weights

Field = dict[str, Contender]
PROBED = ("router", "oracle")  # also played at the weights that only the frontier needs


@dataclass(frozen=True, slots=True)
class Heat:
    """Fitted contenders, and the rows they play."""

    field: Field
    rows: Ints


@dataclass(frozen=True, slots=True)
class Results:
    """Pooled over heats: by contender and weights, [n] outcomes; the chosen columns; the deciding tiers."""

    played: dict[tuple[str, Weights], Played]
    columns: dict[tuple[str, Weights], Ints]
    tiers: dict[Weights, dict[str, float]]


def hold(profile: Profile, heats: Sequence[Heat], grid: Sequence[Weights], extra: Sequence[Weights]) -> Results:
    """Play all heats; their rows together are every row of the profile, each once.

    Args:
        grid: the weights at which everyone plays. extra: those at which only the router and oracle do.
    """
    results = Results({}, {}, {})
    parts = [profile.select(heat.rows) for heat in heats]
    for weights in dict.fromkeys((*grid, *extra)):
        names = [name for name in heats[0].field if weights in grid or name in PROBED]
        for name in names:
            outcome = Played(*(np.zeros(profile.n) for _ in range(3)))
            columns = np.zeros(profile.n, dtype=np.int64)
            for heat, part in zip(heats, parts, strict=True):
                choice = heat.field[name].choose(part, weights)
                got = play(part, choice)
                columns[heat.rows] = choice.columns
                if name == "router":
                    _count(results.tiers.setdefault(weights, {}), choice.tiers, profile.n)
                outcome.quality[heat.rows] = got.quality
                outcome.tokens[heat.rows] = got.tokens
                outcome.latency_ms[heat.rows] = got.latency_ms
            results.played[name, weights] = outcome
            results.columns[name, weights] = columns
    return results


def _count(shares: dict[str, float], tiers: tuple[str, ...], n: int) -> None:
    """Add the share of n questions that each tier decided."""
    for tier, count in Counter(tiers).items():
        shares[tier] = shares.get(tier, 0.0) + count / n
