"""Do no harm: at which cost weights deciding was better than the best static strategy on held-out questions.

At each node of a grid of weights: gain = mean utility (probes counted) minus that of the best static strategy
(no probes), on questions not learned from, and the gain's standard error. A gate is open where
gain > caution * error. Elsewhere the best static strategy answers, and no probe is made.   [ours]

The same questions are answered at every node and utilities change little from one to the next, so evidence is pooled
over neighbouring nodes: what gains by luck at one seldom does around it, and a small gain shows sooner.   [ours]
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
REACH = 1  # nodes on either side whose evidence is pooled


@dataclass(frozen=True, slots=True)
class Gate:
    """Held-out gain over the best static strategy and its standard error, [token nodes, latency nodes].

    Attributes:
        worth: by what ways to decide are compared: the gain pooled over neighbouring nodes, less one standard
            error. None in routers of earlier versions: each node's own gain less its error.
    """

    token_nodes: tuple[float, ...]
    latency_nodes: tuple[float, ...]
    gain: Float[ndarray, "t l"]
    error: Float[ndarray, "t l"]
    caution: float
    worth: Float[ndarray, "t l"] | None = None

    def at(self, weights: Weights) -> tuple[float, float]:
        """Gain and its error at the nearest node."""
        cell = self._cell(weights)
        return float(self.gain[cell]), float(self.error[cell])

    def _cell(self, weights: Weights) -> tuple[int, int]:
        return nearest(self.token_nodes, weights.token), nearest(self.latency_nodes, weights.latency)

    def assured(self, weights: Weights) -> float:
        """By this, ways to decide are compared."""
        gain, error = self.at(weights)
        return gain - error if self.worth is None else float(self.worth[self._cell(weights)])

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


def gate_of(gains: Float[ndarray, "n t l"], caution: float, groups: Ints | None = None) -> Gate:
    """The gate of one way to decide, from what it gained on each held-out question at every node."""
    gain, error = mean_and_error(gains, groups)
    return Gate(TOKEN_NODES, LATENCY_NODES[: gains.shape[2]], gain, error, caution, worth_of(gains, groups))


def guard_of(
    gains: Sequence[Float[ndarray, "n t l"]], held: Sequence[Ints], caution: float, groups: Ints | None = None
) -> Gate:
    """The gate of choosing among several ways to decide: what the choice itself gained where it was not made.

    For each fold the way of the largest worth on the other folds is taken, or none where none is above 0; the gain
    counted is that of the fold. So the more ways compete by luck, the less of it is believed. Gain and error are
    pooled over the nodes beside each; where a node's own gain is not above 0, that stands alone. The first and last
    node have neighbours on one side only: the error is that of the fewer nodes pooled, so it is larger by itself, and a
    gain that ends there is held by the node's own.     [ours]
    """
    stacked = np.stack(gains)  # [ways, n, t, l]
    found = np.zeros(stacked.shape[1:])
    for rows in held:
        seen = others(rows, stacked.shape[1])
        worth = worth_of(stacked[:, seen], None if groups is None else groups[seen])
        taken = np.take_along_axis(stacked[:, rows], worth.argmax(axis=0)[None, None], axis=0)[0]
        found[rows] = np.where(worth.max(axis=0) > 0, taken, 0.0)
    own, (gain, error) = found.mean(axis=0), mean_and_error(pooled(found, REACH), groups)
    return Gate(TOKEN_NODES, LATENCY_NODES[: own.shape[1]], np.where(own > 0, gain, own), error, caution)


def worth_of(gains: Float[ndarray, "*ways n t l"], groups: Ints | None = None) -> Float[ndarray, "*ways t l"]:
    """The gain pooled over neighbouring nodes less one standard error."""
    mean, error = mean_and_error(pooled(gains, REACH), groups)
    return np.asarray(mean - error)


def mean_and_error(gains: Float[ndarray, "*ways n t l"], groups: Ints | None = None) -> tuple[ndarray, ndarray]:
    """Mean over the rows and its standard error, infinite for a single question.

    Args:
        groups: [n] the different question that each row asks: rows of one are not independent, so the error is that
            of the questions' sums (the cluster-robust one of a mean, Liang and Zeger 1986).
    """
    n, mean = gains.shape[-3], gains.mean(axis=-3)
    numbers, member = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    many = len(numbers)
    if many == 1:
        return mean, np.full(mean.shape, np.inf)
    if many == n:
        return mean, gains.std(axis=-3, ddof=1) / math.sqrt(n)
    apart = np.moveaxis(gains - mean[..., None, :, :], -3, 0)
    sums = np.zeros((many, *apart.shape[1:]))
    np.add.at(sums, member, apart)
    return mean, np.sqrt((sums**2).sum(axis=0) * many / (many - 1)) / n


def pooled(gains: Float[ndarray, "*rest t l"], reach: int) -> Float[ndarray, "*rest t l"]:
    """Mean over the nodes at most so many steps away in either weight, in units of the node.

    A utility of the weights (t, l) ranges over about 1 + t + l, by which gains of different nodes are made alike.

    >>> pooled(np.array([[[1.0], [2.02], [3.06]]]), 1).round(3).tolist()
    [[[1.5], [2.02], [2.55]]]
    """
    tokens, latencies = gains.shape[-2:]
    unit = 1 + np.add.outer(TOKEN_NODES[:tokens], LATENCY_NODES[:latencies])
    alike, found = gains / unit, np.empty(gains.shape)
    for t, k in np.ndindex(tokens, latencies):
        near = alike[..., max(0, t - reach) : t + reach + 1, max(0, k - reach) : k + reach + 1]
        found[..., t, k] = near.mean(axis=(-2, -1))
    return np.asarray(found * unit)


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
