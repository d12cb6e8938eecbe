"""The dual-head network as arrays: features and cost weights -> logits of need_RAG and need_CoT. Numpy only.

    [features, standardised | weights, encoded] -> tanh(H) -> tanh(H) -> a, b, c of each head
    logit of a head = a - COST_GAIN * (w_tok * b + w_lat * c)                             mean over M members

Utility is linear in the weights, so the heads are given that form; the encoded weights let a, b and c bend
where the other head's decision changes.     [ours]
"""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from apportion.core.arrays import NDArray
from apportion.route.profile.profile import Floats
from apportion.route.router.decider import allowed
from apportion.route.router.reader import Reader
from apportion.route.router.utility import Costed, Ints, Weights

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
    """A trained ensemble and what it reads.

    Attributes:
        columns: the strategies it may choose. means: [3, 4] of `mean_outcome` in training.
    """

    reader: Reader
    columns: tuple[int, ...]
    means: Float[ndarray, "3 4"]
    layers: Layers
    kind = "network"

    @property
    def asks(self) -> bool:
        """Whether it has a head that decides for each question if a draft is to be made."""
        return self.layers.heads == 3

    def scores(self, read: Float[ndarray, "n f"], weights: Weights) -> Float[ndarray, "n 4"]:
        """How probable each strategy is, as a logit; with all four present each head is thresholded at one half."""
        return joint(self.heads(read, weights), self.columns)

    def wants_draft(self, read: Float[ndarray, "n f"], weights: Weights) -> Bool[ndarray, " n"]:
        """For which questions the draft is worth its cost; only of a policy that asks."""
        return np.asarray(self.heads(read, weights)[:, 2] > 0)

    def heads(self, read: Float[ndarray, "n f"], weights: Weights) -> Float[ndarray, "n heads"]:
        """Logits of need_RAG, need_CoT (and the draft): the mean over members."""
        return np.asarray(self.layers.logits(self.inputs(read, weights)).mean(axis=0), dtype=np.float64)

    def inputs(self, read: Float[ndarray, "n f"], weights: Weights) -> Singles:
        """[n, f + 8] what the network reads, from standardised features [n, f] and weights."""
        encoded = encode_weights(np.array([[weights.token, weights.latency]]), self.means)
        return np.concatenate([read, encoded.repeat(len(read), axis=0)], axis=1).astype(np.float32)


def joint(heads: Float[ndarray, "n heads"], columns: tuple[int, ...]) -> Float[ndarray, "n 4"]:
    """Scores of the strategies: the sum of the logits of what each uses."""
    rag, cot = heads[:, 0], heads[:, 1]
    return allowed(np.stack([0 * rag, rag, cot, rag + cot], axis=1), columns)
