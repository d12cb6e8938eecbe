"""The dual-head network as arrays: features and cost weights -> logits of need_RAG and need_CoT. Numpy only.

    [features, standardised | weights, encoded] -> tanh(H) -> tanh(H) -> a, b, c of each head
    logit of a head = a - COST_GAIN * (w_tok * b + w_lat * c)                             mean over M members

Utility is linear in the weights, so the heads are given that form; the encoded weights let a, b and c bend
where the other head's decision changes.     [ours]
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from apportion.core.arrays import NDArray
from apportion.route.profile.profile import Floats
from apportion.route.router.utility import Costed, Ints

Singles = NDArray[np.float32]
WEIGHT_KNEE = 0.02
WEIGHT_CEILING = 3.0
COST_GAIN = 5.0
ENCODED = 6


def mean_outcome(costed: Costed) -> Floats:
    """[3, 4] mean quality, scaled tokens and scaled latency of each strategy: for static utilities."""
    parts = (costed.quality, costed.tokens, costed.latency)
    return np.stack([part.mean(axis=0) for part in parts])


def encode_weights(weights: Floats, means: Floats) -> Floats:
    """[n, 6 + 2] what the network reads of cost weights [n, 2]; the last two are the weights themselves.

    Two numbers are the weights where ratios count: 0 -> 0, 1 -> 1, logarithmic above the knee. Four are the
    strategies' mean training utilities at these weights against the best of them, in tenths of a point, at
    least -4: so the network need not learn where the best static strategy changes.    [ours]

    Args:
        means: [3, 4] of `mean_outcome`.

    Weights above the ceiling seen in training are read as the ceiling.
    """
    capped = np.minimum(weights, WEIGHT_CEILING)
    logs = np.log1p(capped / WEIGHT_KNEE) / np.log1p(1 / WEIGHT_KNEE)
    static = means[0] - capped @ means[1:]
    behind = np.maximum((static - static.max(axis=1, keepdims=True)) / 0.1, -4)
    return np.concatenate([logs, behind, capped], axis=1)


def mean_and_spread(features: Floats) -> tuple[Floats, Floats]:
    """[f] mean and standard deviation of the values that are there; 0 where there is none."""
    known = np.isfinite(features)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, features, 0.0).sum(axis=0) / count
    squares = np.where(known, (features - mean) ** 2, 0.0).sum(axis=0) / count
    return mean, np.sqrt(squares)


@dataclass(frozen=True, slots=True)
class Layers:
    """Parameters of M members side by side: w1 [M, f + 6, H], w2 [M, H, H], w3 [M, H, 3 heads], biases."""

    w1: Singles
    b1: Singles
    w2: Singles
    b2: Singles
    w3: Singles
    b3: Singles

    def select(self, members: Ints) -> "Layers":
        """The layers of some members."""
        return Layers(*(getattr(self, f.name)[members] for f in fields(self)))

    @property
    def heads(self) -> int:
        """2, or 3 when a head decides whether to make the draft."""
        return int(self.w3.shape[-1]) // 3

    def logits(self, inputs: Singles) -> Singles:
        """[M, n, heads] from [n, f + 6 + 2], the last two columns being the weights."""
        shown, weights = inputs[:, :-2], COST_GAIN * inputs[:, -2:]
        hidden = np.tanh(shown @ self.w1 + self.b1)
        hidden = np.tanh(hidden @ self.w2 + self.b2)
        out = hidden @ self.w3 + self.b3
        heads = self.heads
        tokens, latency = out[..., heads : 2 * heads], out[..., 2 * heads :]
        value: Singles = out[..., :heads] - weights[:, :1] * tokens - weights[:, 1:] * latency
        return value


@dataclass(frozen=True, slots=True)
class Policy:
    """A trained ensemble, the features it reads, and how they are standardised.

    Attributes:
        names: the f features it reads. mean, spread: [f], of the training questions.
        columns: the strategies it may choose. means: [3, 4] of `mean_outcome` in training.
    """

    names: tuple[str, ...]
    mean: Floats
    spread: Floats
    columns: tuple[int, ...]
    means: Floats
    layers: Layers

    def standardise(self, features: Floats) -> Singles:
        """[n, f] standardised, at most 5 spreads out; what is missing becomes the training mean (0)."""
        return np.nan_to_num((features - self.mean) / self.spread).clip(-5, 5).astype(np.float32)

    def inputs(self, features: Floats, weights: Floats) -> Singles:
        """[n, f + 8] what the network reads, from raw features [n, f] and weights [n, 2]."""
        encoded = encode_weights(weights, self.means).astype(np.float32)
        return np.concatenate([self.standardise(features), encoded], axis=1)

    def logits(self, features: Floats, weights: Floats) -> Singles:
        """[n, heads] logits of need_RAG, need_CoT (and the draft): the mean over members."""
        return np.asarray(self.layers.logits(self.inputs(features, weights)).mean(axis=0))

    def logits_of(
        self, features: Mapping[str, float | None], weights: tuple[float, float]
    ) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """The logits for one question, and the features that were missing or not finite: the fast way."""
        row, missing = [], []
        for name, mean, spread in zip(self.names, self.mean.tolist(), self.spread.tolist(), strict=True):
            value = features.get(name)
            if value is None or not math.isfinite(value):
                missing.append(name)
                value = mean
            row.append(min(5.0, max(-5.0, (value - mean) / spread)))
        encoded = encode_weights(np.array([weights]), self.means)
        inputs = np.array([row + encoded[0].tolist()], dtype=np.float32)
        return tuple(self.layers.logits(inputs).mean(axis=0)[0].tolist()), tuple(missing)


def choose(logits: NDArray[np.floating], columns: tuple[int, ...]) -> Ints:
    """[n] the most probable of the strategies that may be chosen; among equals the first.

    With all four present this is each head thresholded at one half.
    """
    joint = np.stack([0 * logits[:, 0], logits[:, 0], logits[:, 1], logits[:, 0] + logits[:, 1]], axis=1)
    allowed = np.array(columns)
    return np.asarray(allowed[joint[:, allowed].argmax(axis=1)])


def choose_one(rag: float, cot: float, columns: tuple[int, ...]) -> int:
    """The same choice for the logits of one question."""
    joint = (0.0, rag, cot, rag + cot)
    return max(columns, key=joint.__getitem__)
