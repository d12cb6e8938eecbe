"""How sure a difference is: paired bootstrap over windows of text."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from apportion.core.arrays import NDArray
from apportion.core.seeds import stream

Array = NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over windows and the central 95 % of its bootstrap distribution."""

    mean: float
    low: float
    high: float

    @property
    def tie(self) -> bool:
        """Whether zero lies within."""
        return self.low <= 0.0 <= self.high


def draws(windows: int, seed: int, resamples: int = RESAMPLES) -> Float[Array, "resamples windows"]:
    """Weight of every window in every resample; rows sum to one."""
    counts = stream(seed, "bootstrap").multinomial(windows, np.full(windows, 1 / windows), size=resamples)
    return np.asarray(counts / windows, dtype=np.float64)


def interval(values: Float[Array, " windows"], weights: Float[Array, "resamples windows"]) -> Interval:
    """Interval of a mean over windows; for a paired difference give the differences per window."""
    means = weights @ values
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))
