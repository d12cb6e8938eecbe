"""Contenders play every question they were not fitted on, at every pair of weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apportion.route.contenders import Contender, Played, Routed, play
from apportion.route.profile import Profile
from apportion.route.utility import Ints, Weights

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
                outcome.quality[heat.rows] = got.quality
                outcome.tokens[heat.rows] = got.tokens
                outcome.latency_ms[heat.rows] = got.latency_ms
            results.played[name, weights] = outcome
            results.columns[name, weights] = columns
        results.tiers[weights] = _tiers(heats, weights, profile.n)
    return results


def _tiers(heats: Sequence[Heat], weights: Weights, n: int) -> dict[str, float]:
    shares: dict[str, float] = {}
    for heat in heats:
        router = heat.field["router"]
        if isinstance(router, Routed):
            name = router.deciding(weights)
            shares[name] = shares.get(name, 0.0) + len(heat.rows) / n
    return shares
