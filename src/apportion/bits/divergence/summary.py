"""Figures of every token -> the figures people compare, with the uncertainty of each mean."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from apportion.bits.divergence.measure import TokenDivergence
from apportion.core.arrays import NDArray
from apportion.core.bootstrap import Bootstrap, Interval


@dataclass(frozen=True, slots=True)
class Divergence:
    """A candidate beside its reference on one text.

    Attributes:
        tokens, windows: how much was predicted; intervals are over windows (central 95 % of the bootstrap).
        kl_mean: nats per token. kl_median, kl_99, kl_999: quantiles over tokens, nats.
        same_top: share of tokens with the same most likely token.
        change_rms: root mean square change of the right token's probability, in [0, 1].
        perplexity, reference_perplexity: on the text's own tokens.
        nll_change: candidate's NLL minus the reference's, nats per token.
    """

    tokens: int
    windows: int
    kl_mean: Interval
    kl_median: float
    kl_99: float
    kl_999: float
    same_top: Interval
    change_rms: Interval
    perplexity: float
    reference_perplexity: float
    nll_change: Interval


def summarize(found: TokenDivergence, *, seed: int = 0) -> Divergence:
    """Means, quantiles and bootstrap intervals.

    Args:
        seed: of the bootstrap, which resamples windows.

    Example:
        >>> kl = np.asarray([[0.0, 0.2], [0.1, 0.1]], dtype=np.float32)
        >>> one = np.ones_like(kl)
        >>> found = summarize(TokenDivergence(kl, kl < 0.2, kl, one, one))
        >>> round(found.kl_mean.mean, 3), found.same_top.mean, round(found.perplexity, 3)
        (0.1, 0.75, 2.718)
    """
    bootstrap = Bootstrap(len(found.kl), seed)
    median, high, highest = np.quantile(found.kl, [0.5, 0.99, 0.999]).tolist()
    square = bootstrap.interval(by_window(found.change**2))
    return Divergence(
        tokens=found.kl.size,
        windows=len(found.kl),
        kl_mean=bootstrap.interval(by_window(found.kl)),
        kl_median=median,
        kl_99=high,
        kl_999=highest,
        same_top=bootstrap.interval(by_window(found.same_top)),
        change_rms=Interval(*(math.sqrt(value) for value in (square.mean, square.low, square.high))),
        perplexity=float(np.exp(found.nll.mean(dtype=np.float64))),
        reference_perplexity=float(np.exp(found.reference_nll.mean(dtype=np.float64))),
        nll_change=bootstrap.interval(by_window(found.nll) - by_window(found.reference_nll)),
    )


def kl_difference(one: TokenDivergence, other: TokenDivergence, *, seed: int = 0) -> Interval:
    """Mean KL of one candidate minus another's on the same windows, paired: below zero where `one` is closer."""
    return Bootstrap(len(one.kl), seed).interval(by_window(one.kl) - by_window(other.kl))


def by_window(figures: NDArray[Any]) -> NDArray[np.float64]:
    """Mean of each window in float64."""
    return np.asarray(figures.mean(axis=1, dtype=np.float64))
