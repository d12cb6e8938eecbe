"""Ridge regression of a quadratic function of choices, its penalties chosen by exact leave-one-out error."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from apportion.core.arrays import NDArray

RIDGES = tuple(10.0**power for power in np.arange(-10.0, 1.01, 0.5))
PAIR_PENALTIES = (1.0, 4.0, 16.0, 64.0)
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quadratic:
    """intercept + linear @ x + x @ pair @ x / 2, with pair symmetric and zero on its diagonal."""

    intercept: float
    linear: Float[Array, " choices"]
    pair: Float[Array, "choices choices"]
    ridge: float
    pair_penalty: float
    loo_rmse: float

    def details(self, coalitions: int) -> dict[str, float]:
        """What a sensitivity keeps of the fit to so many coalitions."""
        return {
            "ridge": self.ridge,
            "pair_penalty": self.pair_penalty,
            "loo_rmse": self.loo_rmse,
            "coalitions": coalitions,
        }


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of the linear costs before: their values, and how far from them each may well be."""

    linear: Float[Array, " choices"]
    spread: Float[Array, " choices"]


def fit_quadratic(
    x: Float[Array, "samples choices"],
    y: Float[Array, " samples"],
    players: Int[NDArray[np.int64], " choices"],
    *,
    mask: Bool[NDArray[np.bool_], "choices choices"] | None = None,
    prior: Prior | None = None,
    weights: Float[Array, " samples"] | None = None,
    penalties: tuple[float, ...] = PAIR_PENALTIES,
) -> Quadratic:
    """Fit on 0/1 choices.

    Args:
        x: which choices each sample makes.
        y: values in nats per token.
        players: the player of each choice; two choices of one player never meet.
        mask: pairs to fit (all, if None).
        prior: shrink the linear costs towards it instead of towards zero.
        weights: how much each sample's error counts (all alike, if None).
        penalties: candidates for `pair_penalty`.

    Pairs are penalised `pair_penalty` times as much as single choices; both penalties are those of least
    leave-one-out error, which for ridge is exact from one decomposition.
    Cost: one eigendecomposition of the smaller Gram matrix for each penalty.
    """
    upper = np.triu(players[:, None] != players[None, :], k=1)
    first, second = np.nonzero(upper if mask is None else upper & mask)
    base = np.zeros(x.shape[1]) if prior is None else prior.linear
    spread = np.ones(x.shape[1]) if prior is None else prior.spread
    pair_spread = np.sqrt(spread[first] * spread[second])
    target = y - x @ base
    best: tuple[float, float, float, Array, float] | None = None
    for penalty in penalties if len(first) else (1.0,):
        shrink = pair_spread / np.sqrt(penalty)
        features = np.concatenate([x * spread, x[:, first] * x[:, second] * shrink], axis=1)
        found, intercept, ridge, error = ridge_loo(features, target, weights)
        if best is None or error < best[0]:
            coefficients = np.concatenate([base + found[: x.shape[1]] * spread, found[x.shape[1] :] * shrink])
            best = (error, ridge, penalty, coefficients, intercept)
    assert best is not None
    error, ridge, penalty, coefficients, intercept = best
    pair = np.zeros((x.shape[1], x.shape[1]))
    pair[first, second] = pair[second, first] = coefficients[x.shape[1] :]
    return Quadratic(float(intercept), coefficients[: x.shape[1]], pair, ridge, penalty, float(np.sqrt(error)))


def ridge_loo(
    features: Float[Array, "samples features"],
    y: Float[Array, " samples"],
    weights: Float[Array, " samples"] | None = None,
) -> tuple[Array, float, float, float]:
    """Coefficients, intercept, ridge and mean squared leave-one-out error of the best of RIDGES.

    The intercept is not penalised. The ridge is relative to the features' mean square.
    """
    share = np.full(len(y), 1 / len(y)) if weights is None else weights / weights.sum()
    mean_x, mean_y = share @ features, float(share @ y)
    root = np.sqrt(share * len(y))
    centred, target = (features - mean_x) * root[:, None], (y - mean_y) * root
    left, squares, right = decompose(centred)
    rotated = left.T @ target
    unit = squares.sum() / len(y) if squares.sum() > 0 else 1.0
    best: tuple[float, float] | None = None
    for ridge in RIDGES:
        kept = squares / (squares + ridge * unit)
        leverage = (left**2 * kept).sum(1) + share
        residual = target - left @ (kept * rotated)
        error = float(np.mean((residual / np.maximum(1 - leverage, 1e-12)) ** 2))
        if best is None or error < best[0]:
            best = (error, ridge)
    assert best is not None
    error, ridge = best
    coefficients = right @ (np.sqrt(squares) / (squares + ridge * unit) * rotated)
    return coefficients, mean_y - float(mean_x @ coefficients), ridge, error


def decompose(matrix: Float[Array, "rows columns"]) -> tuple[Array, Array, Array]:
    """Left vectors, squared singular values and right vectors of rank at most the smaller side."""
    tall = matrix.shape[0] >= matrix.shape[1]
    squares, vectors = np.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    kept = squares > max(float(squares[-1]), 0.0) * 1e-13
    squares, vectors = squares[kept], vectors[:, kept]
    other = (matrix @ vectors if tall else matrix.T @ vectors) / np.sqrt(squares)
    return (other, squares, vectors) if tall else (vectors, squares, other)
