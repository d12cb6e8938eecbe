"""Do no harm: at which cost weights a policy was better than the best static strategy on held-out questions.

At each node of a grid of weights: gain = mean utility of the policy (probes counted) minus that of the best
static strategy (no probes), on questions its members did not see, and the gain's standard error. The gate is
open where gain > caution * error. Elsewhere the best static strategy answers, and no probe is made.   [ours]
"""

import math
from bisect import bisect
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from apportion.route.profile.profile import Floats
from apportion.route.router.utility import Weights

TOKEN_NODES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
LATENCY_NODES = (0.0, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class Gate:
    """Held-out gain over the best static strategy and its standard error, [token nodes, latency nodes]."""

    token_nodes: tuple[float, ...]
    latency_nodes: tuple[float, ...]
    gain: Floats
    error: Floats
    caution: float

    def at(self, weights: Weights) -> tuple[float, float]:
        """Gain and its error at the nearest node."""
        cell = (nearest(self.token_nodes, weights.token), nearest(self.latency_nodes, weights.latency))
        return float(self.gain[cell]), float(self.error[cell])

    def is_open(self, weights: Weights) -> bool:
        """Whether the policy may decide at these weights."""
        gain, error = self.at(weights)
        return gain > self.caution * error


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


def mean_and_error(values: Floats) -> tuple[float, float]:
    """Mean and its standard error; of a single value the error is infinite."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.inf
    return float(values.mean()), float(error)
