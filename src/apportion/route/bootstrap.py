"""Intervals over questions: percentiles of the mean over resampled questions."""

from dataclasses import dataclass

import numpy as np

from apportion.core.seeds import stream
from apportion.route.profile import Floats

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % bootstrap interval over questions."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """The same resampled questions for every difference, so that differences are paired."""

    def __init__(self, n: int, seed: int, resamples: int = RESAMPLES) -> None:
        rng = stream(seed, "bootstrap", n)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
        self.shares = (counts / n).astype(np.float32)

    def interval(self, values: Floats) -> Interval:
        """Interval of the mean of [n] values."""
        means = self.shares @ values.astype(np.float32)
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(values.mean()), float(low), float(high))
