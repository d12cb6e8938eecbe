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

    Args:
        groups: [n] number of the group of each; things of one group are drawn together, since a repeated question is
            no further evidence. Where every group is of one, draws are those without groups.

    Attributes:
        shares: [resamples, n] weight of every thing in every resample; rows sum to one.
    """

    def __init__(
        self, n: int, seed: int, resamples: int = RESAMPLES, *, groups: NDArray[np.int64] | None = None
    ) -> None:
        numbers, member = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
        drawn = len(numbers)
        counts = stream(seed, "bootstrap", drawn).multinomial(drawn, np.full(drawn, 1 / drawn), size=resamples)
        counts = counts[:, member] if drawn < n else counts
        self.shares = np.asarray(counts / counts.sum(axis=1, keepdims=True), dtype=np.float64)

    def interval(self, values: NDArray[np.float64]) -> Interval:
        """Interval of the mean of [n] values; for a paired difference give the differences."""
        means = self.shares @ values
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(values.mean()), float(low), float(high))
