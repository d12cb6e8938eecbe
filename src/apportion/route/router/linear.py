"""A decider in closed form: each strategy's quality and costs as linear functions of the features.

Utility is linear in quality and costs, so one fit serves every weight: the highest predicted utility is chosen.
Shrunk far, it predicts the means and is the best static strategy.     [ours]
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from apportion.route.router.decider import allowed
from apportion.route.router.folds import others
from apportion.route.router.reader import Reader
from apportion.route.router.utility import Costed, Ints, Weights

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # times the number of questions


@dataclass(frozen=True, slots=True)
class Linear:
    """Predicted quality, scaled tokens and scaled latency of each strategy.

    Attributes:
        means: [3, 4] at the mean of the features. slopes: [3, f, 4] per spread.
    """

    reader: Reader
    columns: tuple[int, ...]
    means: Float[ndarray, "3 4"]
    slopes: Float[ndarray, "3 f 4"]
    kind = "linear"

    def scores(self, read: Float[ndarray, "n f"], weights: Weights) -> Float[ndarray, "n 4"]:
        """Predicted utilities."""
        signs = np.array([1.0, -weights.token, -weights.latency])
        means, slopes = np.tensordot(signs, self.means, 1), np.tensordot(signs, self.slopes, 1)
        return allowed(means + read @ slopes, self.columns)


def fit_linear(reader: Reader, read: Float[ndarray, "n f"], costed: Costed, penalty: float) -> Linear:
    """Ridge regression on standardised features.

    Args:
        read: of the same questions as costed.
        penalty: of a squared slope, times the number of questions; the means are not shrunk.

    Cost: one decomposition of f x f.
    """
    targets = outcomes(costed)
    means, slopes = ridge(read, targets.reshape(len(read), -1), penalty)
    return Linear(reader, costed.columns, means.reshape(3, 4), slopes.reshape(-1, 3, 4).swapaxes(0, 1))


def outcomes(costed: Costed) -> Float[ndarray, "n 3 4"]:
    """Quality, tokens and latency; 0 for a strategy that may not be chosen."""
    quality = np.where(np.isfinite(costed.quality), costed.quality, 0.0)
    return np.stack([quality, costed.tokens, costed.latency], axis=1)


def ridge(
    read: Float[ndarray, "n f"], targets: Float[ndarray, "n t"], penalty: float
) -> tuple[Float[ndarray, " t"], Float[ndarray, "f t"]]:
    """(intercepts, slopes) of the least squares with the penalty; the intercepts are not shrunk.

    >>> mean, slope = ridge(np.array([[-1.0], [1.0]]), np.array([[0.0], [2.0]]), 1.0)
    >>> mean.tolist(), slope.tolist()
    ([1.0], [[0.5]])
    """
    centre, mean = read.mean(axis=0), targets.mean(axis=0)
    x, y = read - centre, targets - mean
    slopes = np.linalg.solve(x.T @ x + penalty * len(read) * np.eye(x.shape[1]), x.T @ y)
    return np.asarray(mean - centre @ slopes), np.asarray(slopes)


def best_penalty(read: Float[ndarray, "n f"], targets: Float[ndarray, "n t"], held: tuple[Ints, ...]) -> float:
    """The penalty with the smallest squared error on questions held out; among equals the largest."""
    return min(reversed(PENALTIES), key=lambda penalty: held_out_error(read, targets, held, penalty))


def held_out_error(
    read: Float[ndarray, "n f"], targets: Float[ndarray, "n t"], held: tuple[Ints, ...], penalty: float
) -> float:
    """Mean squared error of predicting each fold from the others."""
    return float(((held_out(read, targets, held, penalty) - targets) ** 2).mean())


def held_out(
    read: Float[ndarray, "n f"], targets: Float[ndarray, "n t"], held: tuple[Ints, ...], penalty: float
) -> Float[ndarray, "n t"]:
    """Each fold predicted from the others."""
    found = np.zeros_like(targets)
    for rows in held:
        seen = others(rows, len(read))
        means, slopes = ridge(read[seen], targets[seen], penalty)
        found[rows] = means + read[rows] @ slopes
    return found
