"""Do no harm: at which cost weights deciding was better than the best static strategy on held-out questions.

At each node of a grid of weights: gain = mean utility (probes counted) minus that of the best static strategy
(no probes), on questions not learned from, and the gain's standard error. A gate is open where
gain > caution * error. Elsewhere the best static strategy answers, and no probe is made.   [ours]
"""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from apportion.route.router.folds import others
from apportion.route.router.utility import Ints, Weights

TOKEN_NODES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
LATENCY_NODES = (0.0, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class Gate:
    """Held-out gain over the best static strategy and its standard error, [token nodes, latency nodes]."""

    token_nodes: tuple[float, ...]
    latency_nodes: tuple[float, ...]
    gain: Float[ndarray, "t l"]
    error: Float[ndarray, "t l"]
    caution: float

    def at(self, weights: Weights) -> tuple[float, float]:
        """Gain and its error at the nearest node."""
        cell = (nearest(self.token_nodes, weights.token), nearest(self.latency_nodes, weights.latency))
        return float(self.gain[cell]), float(self.error[cell])

    def assured(self, weights: Weights) -> float:
        """The gain less one standard error: by this, ways to decide are compared."""
        gain, error = self.at(weights)
        return gain - error

    def is_open(self, weights: Weights) -> bool:
        """Whether deciding is allowed at these weights."""
        gain, error = self.at(weights)
        return gain > self.caution * error

    def opened(self) -> "Gate":
        """The same gains and errors, open at every node (an error of 0 would make no bound of any caution)."""
        return replace(self, caution=-math.inf, error=np.maximum(self.error, np.finfo(float).tiny))

    @property
    def open_share(self) -> float:
        """Share of the nodes at which it is open."""
        return float((self.gain > self.caution * self.error).mean())


def gate_of(gains: Float[ndarray, "n t l"], caution: float) -> Gate:
    """The gate of one way to decide, from what it gained on each held-out question at every node."""
    n, _, latencies = gains.shape
    error = gains.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.full(gains.shape[1:], np.inf)
    return Gate(TOKEN_NODES, LATENCY_NODES[:latencies], gains.mean(axis=0), error, caution)


def guard_of(gains: Sequence[Float[ndarray, "n t l"]], held: Sequence[Ints], caution: float) -> Gate:
    """The gate of choosing among several ways to decide: what the choice itself gained where it was not made.

    For each fold the way with the largest assured gain (less one standard error) on the other folds is taken, or
    none where none is assured of any; the gain counted is that of the fold. So the more ways compete by luck, the
    less of it is believed.     [ours]
    """
    stacked = np.stack(gains)  # [ways, n, t, l]
    found = np.zeros(stacked.shape[1:])
    for rows in held:
        seen = stacked[:, others(rows, stacked.shape[1])]
        sure = seen.mean(axis=1) - seen.std(axis=1, ddof=1) / math.sqrt(seen.shape[1])
        taken = np.take_along_axis(stacked[:, rows], sure.argmax(axis=0)[None, None], axis=0)[0]
        found[rows] = np.where(sure.max(axis=0) > 0, taken, 0.0)
    return gate_of(found, caution)


def node_grid(*, timed: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The token and latency weights of the nodes."""
    return TOKEN_NODES, LATENCY_NODES if timed else (0.0,)


def nearest(nodes: tuple[float, ...], value: float) -> int:
    """Number of the nearest node by ratio (0 has its own: below half the smallest other node).

    >>> nearest((0.0, 0.1, 1.0), 0.04), nearest((0.0, 0.1, 1.0), 0.3), nearest((0.0, 0.1, 1.0), 0.4)
    (0, 1, 2)
    """
    return bisect(edges(nodes), value)


@cache
def edges(nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Where the nearest node changes; the first node is 0."""
    means = (math.sqrt(low * high) for low, high in pairwise(nodes[1:]))
    return (nodes[1] / 2, *means) if len(nodes) > 1 else ()
