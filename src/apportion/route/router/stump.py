"""The cheapest decider: one strategy up to a threshold of one feature, another above; best for each weights.

The query-length rule is one of them, and so is a rule for a kind of question.     [ours]
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from apportion.route.router.decider import one_hot
from apportion.route.router.gate import LATENCY_NODES, TOKEN_NODES, nearest
from apportion.route.router.reader import Reader
from apportion.route.router.utility import Costed, Weights, utility

QUANTILES = np.linspace(0.1, 0.9, 9)
FEWEST = 5  # questions on either side


@dataclass(frozen=True, slots=True)
class Stump:
    """A rule for each node of the gate's grid of weights.

    Attributes:
        feature, below, above: [t, l] the feature's number and the two columns. threshold: [t, l] in spreads.
    """

    reader: Reader
    columns: tuple[int, ...]
    feature: Int[ndarray, "t l"]
    threshold: Float[ndarray, "t l"]
    below: Int[ndarray, "t l"]
    above: Int[ndarray, "t l"]
    kind = "stump"

    def scores(self, read: Float[ndarray, "n f"], weights: Weights) -> Float[ndarray, "n 4"]:
        """1 for the side that a question is on."""
        latency = nearest(LATENCY_NODES, weights.latency) if self.feature.shape[1] > 1 else 0
        cell = (nearest(TOKEN_NODES, weights.token), latency)
        up = read[:, self.feature[cell]] > self.threshold[cell]
        return one_hot(np.where(up, self.above[cell], self.below[cell]), self.columns)


def fit_stump(reader: Reader, read: Float[ndarray, "n f"], costed: Costed) -> Stump:
    """The rule with the highest mean utility at every node; among equals the first.

    Cost: (thresholds x n) times (n x 4 nodes), once.
    """
    cuts = _cuts(read)
    latencies = LATENCY_NODES if costed.has_latency else (0.0,)
    nodes = [Weights(token, latency) for token in TOKEN_NODES for latency in latencies]
    values = np.stack([utility(costed, weights) for weights in nodes], axis=1)  # [n, nodes, 4]
    values[..., [c for c in range(4) if c not in costed.columns]] = -1e9  # finite, for sums of nothing
    up = np.stack([read[:, feature] > threshold for feature, threshold in cuts]).astype(float)  # [cuts, n]
    over = np.tensordot(up, values, 1)  # [cuts, nodes, 4]
    under = values.sum(axis=0) - over
    best = (over.max(axis=2) + under.max(axis=2)).argmax(axis=0)  # [nodes]
    shape, each = (len(TOKEN_NODES), len(latencies)), np.arange(len(nodes))
    return Stump(
        reader=reader,
        columns=costed.columns,
        feature=np.array([cuts[i][0] for i in best]).reshape(shape),
        threshold=np.array([cuts[i][1] for i in best]).reshape(shape),
        below=under[best, each].argmax(axis=1).reshape(shape),
        above=over[best, each].argmax(axis=1).reshape(shape),
    )


def _cuts(read: Float[ndarray, "n f"]) -> list[tuple[int, float]]:
    """(feature, threshold) of every split that leaves some questions on either side; one that splits nothing first."""
    found = [(0, float(read[:, 0].max()))]
    for feature, values in enumerate(read.T):
        for threshold in np.unique(np.quantile(values, QUANTILES)).tolist():
            above = int((values > threshold).sum())
            if FEWEST <= above <= len(values) - FEWEST:
                found.append((feature, threshold))
    return found
