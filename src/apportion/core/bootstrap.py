"""How sure a mean is: the bootstrap over windows or questions, paired by using the same resamples throughout."""

from dataclasses import dataclass

import numpy as np

from apportion.core.arrays import NDArray
from apportion.core.seeds import stream

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the central 95 % of its bootstrap distribution."""

    mean: float
    low: float
    high: float

    @property
    def tie(self) -> bool:
        """Whether zero lies within."""
        return self.low <= 0.0 <= self.high


class Bootstrap:
    """Resamples of n things.

    Attributes:
        shares: [resamples, n] weight of every thing in every resample; rows sum to one.
    """

    def __init__(self, n: int, seed: int, resamples: int = RESAMPLES) -> None:
        counts = stream(seed, "bootstrap", n).multinomial(n, np.full(n, 1 / n), size=resamples)
        self.shares = np.asarray(counts / n, dtype=np.float64)

    def interval(self, values: NDArray[np.float64]) -> Interval:
        """Interval of the mean of [n] values; for a paired difference give the differences."""
        means = self.shares @ values
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(values.mean()), float(low), float(high))
