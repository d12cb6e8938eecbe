"""Shapley-based Progressive Quantization Estimation: permutations -> coalitions -> marginals.

Every player starts at the high width; along each random permutation the players are demoted to the low width
one after another. The change of the value at the step that demotes player i is its marginal. Nothing is ever
pruned, so the model degrades smoothly and the estimates have low variance.

Source: CoopQ, Findings of ACL 2026 (arXiv 2509.15455), section on SPQE. The number of permutations is the
paper's M (100); antithetic pairs (each permutation followed by its reverse) are ours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from apportion.bits.game.players import Assignment
from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.core.seeds import stream


def draw_permutations(
    players: int, count: int, seed: int, *, antithetic: bool = False
) -> Int[NDArray[np.int64], "permutations players"]:
    """Random orders of the players; the first m of a longer draw equal a shorter draw.

    Raises:
        InputError: fewer than one permutation.
    """
    if count < 1:
        raise InputError(f"--permutations {count}: expected at least 1")
    orders: list[NDArray[np.int64]] = []
    while len(orders) < count:
        orders.append(stream(seed, "permutation", len(orders)).permutation(players).astype(np.int64))
        if antithetic and len(orders) < count:
            orders.append(orders[-1][::-1].copy())
    return np.stack(orders)


def chain(order: Sequence[int], low: int, high: int) -> list[Assignment]:
    """The coalitions along one permutation, from all high to all low.

    >>> chain([1, 0], low=0, high=2)
    [(2, 2), (2, 0), (0, 0)]
    """
    widths = [high] * len(order)
    found = [tuple(widths)]
    for player in order:
        widths[player] = low
        found.append(tuple(widths))
    return found


def coalitions(orders: Int[NDArray[np.int64], "permutations players"], low: int, high: int) -> list[Assignment]:
    """All coalitions that SPQE asks for: all high once, then every step of every permutation, repetitions included."""
    chains = [chain(order, low, high) for order in orders.tolist()]
    return [chains[0][0], *(item for one in chains for item in one[1:])]


def asked_by(orders: Int[NDArray[np.int64], "permutations players"], low: int, high: int) -> set[Assignment]:
    """The distinct coalitions of some permutations; without any, all high and all low alone."""
    players = orders.shape[1]
    ends = {(high,) * players, (low,) * players}
    return ends | set(coalitions(orders, low, high)) if len(orders) else ends


def marginals(
    orders: Int[NDArray[np.int64], "permutations players"],
    values: Mapping[Assignment, float],
    low: int,
    high: int,
) -> Float[NDArray[np.float64], "permutations players"]:
    """D[m, i]: the change of the value, in nats per token, when permutation m demotes player i.

    Every row sums to v(all low) - v(all high).
    """
    found = np.empty(orders.shape, dtype=np.float64)
    for row, order in enumerate(orders.tolist()):
        along = [values[item] for item in chain(order, low, high)]
        found[row, order] = np.diff(along)
    return found
