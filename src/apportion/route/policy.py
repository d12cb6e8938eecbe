"""The dual-head network as arrays: features and cost weights -> logits of need_RAG and need_CoT. Numpy only.

[features, standardised | encoded weights] -> tanh(H) -> tanh(H) -> 2 logits          mean over M members
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from apportion.route.profile import Floats
from apportion.route.utility import Ints

Singles = NDArray[np.float32]
WEIGHT_KNEE = 0.02
WEIGHT_CEILING = 3.0


def encode_weights(weights: Floats) -> Floats:
    """Cost weights on a scale where ratios count: 0 -> 0, 1 -> 1, logarithmic above the knee.

    Weights above the ceiling seen in training are read as the ceiling.
    """
    capped = np.minimum(weights, WEIGHT_CEILING)
    return np.asarray(np.log1p(capped / WEIGHT_KNEE) / np.log1p(1 / WEIGHT_KNEE))


@dataclass(frozen=True, slots=True)
class Layers:
    """Parameters of M members side by side: w1 [M, f + 2, H], w2 [M, H, H], w3 [M, H, 2] and biases."""

    w1: Singles
    b1: Singles
    w2: Singles
    b2: Singles
    w3: Singles
    b3: Singles

    def select(self, members: Ints) -> "Layers":
        """The layers of some members."""
        return Layers(*(getattr(self, f.name)[members] for f in fields(self)))

    def logits(self, inputs: Singles) -> Singles:
        """[M, n, 2] from [n, f + 2]."""
        hidden = np.tanh(inputs @ self.w1 + self.b1)
        hidden = np.tanh(hidden @ self.w2 + self.b2)
        value: Singles = hidden @ self.w3 + self.b3
        return value


@dataclass(frozen=True, slots=True)
class Policy:
    """A trained ensemble, the features it reads, and how they are standardised.

    Attributes:
        names: the f features it reads. mean, spread: [f], of the training questions.
        columns: the strategies it may choose.
    """

    names: tuple[str, ...]
    mean: Singles
    spread: Singles
    columns: tuple[int, ...]
    layers: Layers

    def standardise(self, features: Floats) -> Singles:
        """[n, f] standardised; what is missing becomes the training mean (0)."""
        return np.nan_to_num((features - self.mean) / self.spread).astype(np.float32).clip(-5, 5)

    def inputs(self, features: Floats, weights: Floats) -> Singles:
        """[n, f + 2] what the network reads, from raw features [n, f] and weights [n, 2]."""
        encoded = encode_weights(weights).astype(np.float32)
        return np.concatenate([self.standardise(features), encoded], axis=1)

    def logits(self, features: Floats, weights: Floats) -> Singles:
        """[n, 2] logits of need_RAG and need_CoT: the mean over members."""
        return np.asarray(self.layers.logits(self.inputs(features, weights)).mean(axis=0))

    def row(self, features: Mapping[str, float | None]) -> tuple[Floats, tuple[str, ...]]:
        """[1, f] of a question's features, and the names that are missing or not finite."""
        read = [features.get(name) for name in self.names]
        values = np.array([[np.nan if value is None else value for value in read]], dtype=np.float64)
        gone = tuple(n for n, known in zip(self.names, np.isfinite(values[0]), strict=True) if not known)
        return np.where(np.isfinite(values), values, np.nan), gone


def choose(logits: NDArray[np.floating], columns: tuple[int, ...]) -> Ints:
    """[n] the most probable of the strategies that may be chosen; among equals the first.

    With all four present this is each head thresholded at one half.
    """
    joint = np.stack([0 * logits[:, 0], logits[:, 0], logits[:, 1], logits[:, 0] + logits[:, 1]], axis=1)
    allowed = np.array(columns)
    return np.asarray(allowed[joint[:, allowed].argmax(axis=1)])
