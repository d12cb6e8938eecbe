"""How far the heads' probabilities can be trusted: Brier score, expected calibration error, a temperature."""

from dataclasses import dataclass

import numpy as np

from apportion.route.profile import Bools, Floats

BINS = 10
TEMPERATURES = np.geomspace(0.2, 20, 41)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One head on held-out questions, at the temperature that makes its log loss smallest.

    Attributes:
        temperature: the logits are divided by it; decisions do not change.
        brier, ece: of the tempered probabilities; `brier_base` is that of always saying the base rate.
        raw_ece: before tempering.
        reliability: (mean probability, share that needed it, count) of up to ten equally full bins.
    """

    head: str
    base_rate: float
    temperature: float
    brier: float
    brier_base: float
    ece: float
    raw_ece: float
    reliability: tuple[tuple[float, float, int], ...]


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))


def calibrate(head: str, logits: Floats, needed: Bools) -> Calibration:
    """Calibration of one head: logits [n] against whether the best strategy used it [n]."""
    losses = [log_loss(logits / t, needed) for t in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    p, base = sigmoid(logits / temperature), float(needed.mean())
    return Calibration(
        head=head,
        base_rate=base,
        temperature=temperature,
        brier=float(((p - needed) ** 2).mean()),
        brier_base=base * (1 - base),
        ece=expected_error(p, needed),
        raw_ece=expected_error(sigmoid(logits), needed),
        reliability=tuple((float(a), float(b), n) for a, b, n in bins(p, needed)),
    )


def log_loss(logits: Floats, needed: Bools) -> float:
    """Mean negative log-likelihood in nats."""
    return float(np.logaddexp(0, np.where(needed, -logits, logits)).mean())


def bins(p: Floats, needed: Bools) -> list[tuple[float, float, int]]:
    """(mean probability, share needed, count) of equally full bins in order of probability."""
    parts = np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p)))
    return [(float(p[rows].mean()), float(needed[rows].mean()), len(rows)) for rows in parts]


def expected_error(p: Floats, needed: Bools) -> float:
    """Expected calibration error over equally full bins."""
    return sum(abs(mean - share) * count for mean, share, count in bins(p, needed)) / len(p)
