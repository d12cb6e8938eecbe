"""A forest of shallow trees: each strategy's quality and costs as means over the questions of a leaf.

Kinds of questions are seldom linear in the features: sums are long, hold numbers and need no passages, and a tree of a
few thresholds finds them. One fit serves every weight, as with `linear`. Source: random forests (Breiman 2001), fitted
by scikit-learn; decided in numpy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from apportion.route.router.decider import allowed
from apportion.route.router.linear import outcomes
from apportion.route.router.reader import Reader
from apportion.route.router.utility import Costed, Weights

TREES, DEPTH = 60, 4
FEWEST = 5  # questions in a leaf
SHARE = 0.3  # of the features, tried at each split


@dataclass(frozen=True, slots=True)
class Forest:
    """Full trees: the children of split i are 2 i + 1 and 2 i + 2; a branch that ends early repeats its leaf.

    Attributes:
        feature, threshold: [trees, splits] the feature's number, and in spreads: above it, the second child.
        leaves: [trees, splits + 1, 3, 4] quality, scaled tokens and scaled latency.
    """

    reader: Reader
    columns: tuple[int, ...]
    feature: Int[ndarray, "trees splits"]
    threshold: Float[ndarray, "trees splits"]
    leaves: Float[ndarray, "trees leaves 3 4"]
    kind = "forest"

    def scores(self, read: Float[ndarray, "n f"], weights: Weights) -> Float[ndarray, "n 4"]:
        """Predicted utilities."""
        trees, splits = np.arange(len(self.feature)), self.feature.shape[1]
        single = read.astype(np.float32)  # as scikit-learn compares
        rows, place = np.arange(len(read))[:, None], np.zeros((len(read), len(trees)), dtype=np.int64)
        while place.size and place[0, 0] < splits:
            up = single[rows, self.feature[trees, place]] > self.threshold[trees, place]
            place = 2 * place + 1 + up
        said = self.leaves[trees, place - splits].mean(axis=1)  # [n, 3, 4]
        return allowed(said[:, 0] - weights.token * said[:, 1] - weights.latency * said[:, 2], self.columns)


def fit_forest(reader: Reader, read: Float[ndarray, "n f"], costed: Costed, seed: int) -> Forest:
    """Regression trees on bootstrap samples of the questions; equal seeds give equal forests.

    Cost: about 0.1 s for 500 questions.
    """
    from sklearn.ensemble import RandomForestRegressor

    targets = outcomes(costed)
    model = RandomForestRegressor(
        TREES, max_depth=DEPTH, min_samples_leaf=FEWEST, max_features=SHARE, random_state=seed, n_jobs=1
    )
    model.fit(read, targets.reshape(len(read), -1))
    parts = [_full(one.tree_) for one in model.estimators_]
    feature, threshold, leaves = (np.stack(part) for part in zip(*parts, strict=True))
    return Forest(reader, costed.columns, feature, threshold, leaves.reshape(TREES, 2**DEPTH, 3, 4))


def _full(tree: Any) -> tuple[ndarray, ndarray, ndarray]:
    """Features and thresholds of all splits and the values of all leaves, early ends repeated below."""
    nodes = [0]
    for split in range(2**DEPTH - 1):
        node = nodes[split]
        ends = tree.children_left[node] < 0
        nodes += [node, node] if ends else [tree.children_left[node], tree.children_right[node]]
    splits, leaves = np.array(nodes[: 2**DEPTH - 1]), nodes[2**DEPTH - 1 :]
    return tree.feature[splits].clip(0).astype(np.int64), tree.threshold[splits], tree.value[leaves, :, 0]
