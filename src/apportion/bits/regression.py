"""Ridge regression of a quadratic function of choices, its penalties chosen by exact leave-one-out error."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

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


def fit_quadratic(
    x: Float[Array, "samples choices"],
    y: Float[Array, " samples"],
    players: Int[NDArray[np.int64], " choices"],
    mask: Bool[NDArray[np.bool_], "choices choices"] | None = None,
) -> Quadratic:
    """Fit on 0/1 choices.

    Args:
        x: which choices each sample makes.
        y: values in nats per token.
        players: the player of each choice; two choices of one player never meet.
        mask: pairs to fit (all, if None).

    Pairs are penalised `pair_penalty` times as much as single choices; both penalties are those of least
    leave-one-out error, which for ridge is exact from one decomposition.
    Cost: one eigendecomposition of a [samples, samples] matrix for each of the PAIR_PENALTIES.
    """
    upper = np.triu(players[:, None] != players[None, :], k=1)
    first, second = np.nonzero(upper if mask is None else upper & mask)
    singles, pairs = x, x[:, first] * x[:, second]
    best: tuple[float, float, float, Array, float] | None = None
    for penalty in PAIR_PENALTIES if len(first) else (1.0,):
        features = np.concatenate([singles, pairs / np.sqrt(penalty)], axis=1)
        weights, intercept, ridge, error = ridge_loo(features, y)
        if best is None or error < best[0]:
            weights = np.concatenate([weights[: x.shape[1]], weights[x.shape[1] :] / np.sqrt(penalty)])
            best = (error, ridge, penalty, weights, intercept)
    assert best is not None
    error, ridge, penalty, weights, intercept = best
    pair = np.zeros((x.shape[1], x.shape[1]))
    pair[first, second] = pair[second, first] = weights[x.shape[1] :]
    return Quadratic(float(intercept), weights[: x.shape[1]], pair, ridge, penalty, float(np.sqrt(error)))


def ridge_loo(
    features: Float[Array, "samples features"], y: Float[Array, " samples"]
) -> tuple[Array, float, float, float]:
    """Weights, intercept, ridge and mean squared leave-one-out error of the best of RIDGES.

    The intercept is not penalised. The ridge is relative to the features' mean square.
    """
    mean_x, mean_y = features.mean(0), y.mean()
    centred, target = features - mean_x, y - mean_y
    gram = centred @ centred.T
    eigenvalues, basis = np.linalg.eigh(gram)
    eigenvalues = eigenvalues.clip(min=0)
    rotated = basis.T @ target
    unit = eigenvalues.sum() / len(y)
    best: tuple[float, float] | None = None
    for ridge in RIDGES:
        shrink = 1 / (eigenvalues + ridge * unit)
        # hat matrix diagonal, with the intercept's share added
        leverage = (basis**2 * (eigenvalues * shrink)).sum(1) + 1 / len(y)
        residual = target - basis @ (eigenvalues * shrink * rotated)
        error = float(np.mean((residual / np.maximum(1 - leverage, 1e-12)) ** 2))
        if best is None or error < best[0]:
            best = (error, ridge)
    assert best is not None
    error, ridge = best
    weights = centred.T @ (basis @ (rotated / (eigenvalues + ridge * unit)))
    return weights, float(mean_y - mean_x @ weights), ridge, error
