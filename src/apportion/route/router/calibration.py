"""How far the heads' probabilities can be trusted: Brier score, expected calibration error, a temperature.

A head is trained on what its decision is worth, so its probability is that the decision is needed *weighted
by what is at stake*: 0.9 means that nine tenths of the utility at stake among such questions lies on the side
of yes. It is judged by that; the unweighted figures, of questions simply counted, stand beside it.     [ours]
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apportion.route.profile.profile import Bools, Floats
from apportion.route.router.decider import HEADS, heads_of
from apportion.route.router.utility import TOKEN_WEIGHTS, Costed, Weights, utility, weight_grid

BINS = 10
TEMPERATURES = np.geomspace(0.01, 20, 67)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One head on held-out questions, at the temperature that makes its stake-weighted log loss smallest.

    Attributes:
        temperature: the logits are divided by it; decisions do not change.
        base_rate, brier, ece: weighted by stake; `brier_base` is that of always saying the base rate.
        raw_ece: before tempering.
        counted_base_rate, counted_brier, counted_ece: every question the same.
        reliability: (mean probability, share needed, share of all stakes) of up to ten bins.
    """

    head: str
    temperature: float
    base_rate: float
    brier: float
    brier_base: float
    ece: float
    raw_ece: float
    counted_base_rate: float
    counted_brier: float
    counted_ece: float
    reliability: tuple[tuple[float, float, float], ...]


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))


def worth_of(head: str, utilities: Floats) -> Floats | None:
    """[n] best utility with the head's yes minus the best with its no; None where the head has no choice."""
    yes = np.array(HEADS[head])
    possible = np.isfinite(utilities).any(axis=0)
    if not (possible & yes).any() or not (possible & ~yes).any():
        return None
    return np.asarray(utilities[:, yes].max(axis=1) - utilities[:, ~yes].max(axis=1))


def calibrate(head: str, logits: Floats, worth: Floats) -> Calibration:
    """Calibration of one head: logits [n] against what a yes is worth [n] (needed where above 0)."""
    needed, stake = worth > 0, np.abs(worth)
    stake = stake / stake.sum() if stake.sum() > 0 else np.full(len(stake), 1 / len(stake))
    even = np.full(len(stake), 1 / len(stake))
    losses = [log_loss(logits / t, needed, stake) for t in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    p, base = sigmoid(logits / temperature), float(stake @ needed)
    return Calibration(
        head=head,
        temperature=temperature,
        base_rate=base,
        brier=float(stake @ (p - needed) ** 2),
        brier_base=base * (1 - base),
        ece=expected_error(p, needed, stake),
        raw_ece=expected_error(sigmoid(logits), needed, stake),
        counted_base_rate=float(needed.mean()),
        counted_brier=float(((p - needed) ** 2).mean()),
        counted_ece=expected_error(p, needed, even),
        reliability=tuple(bins(p, needed, stake)),
    )


def log_loss(logits: Floats, needed: Bools, stake: Floats) -> float:
    """Negative log-likelihood in nats, weighted."""
    return float(stake @ np.logaddexp(0, np.where(needed, -logits, logits)))


def bins(p: Floats, needed: Bools, stake: Floats) -> list[tuple[float, float, float]]:
    """(mean probability, share needed, weight) of bins of equally many questions in order of probability."""
    found = []
    for rows in np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p))):
        weight = float(stake[rows].sum())
        if weight > 0:
            shares = stake[rows] / weight
            found.append((float(shares @ p[rows]), float(shares @ needed[rows]), weight))
    return found


def expected_error(p: Floats, needed: Bools, stake: Floats) -> float:
    """Expected calibration error over the bins."""
    return sum(abs(mean - share) * weight for mean, share, weight in bins(p, needed, stake))


def calibrate_pooled(scores: Callable[[Weights], Floats], costed: Costed) -> tuple[Calibration, ...]:
    """The heads that scores [n, 4] amount to, pooled over the token weights."""
    grid = weight_grid(TOKEN_WEIGHTS, (0.0,), timed=False)
    logits = np.concatenate([heads_of(scores(weights)) for weights in grid])
    return calibrate_heads(logits, np.concatenate([utility(costed, weights) for weights in grid]))


def calibrate_heads(logits: Floats, utilities: Floats) -> tuple[Calibration, ...]:
    """Calibration of each head that has a choice: logits [n, 2] against utilities [n, 4]."""
    worths = {head: worth_of(head, utilities) for head in HEADS}
    return tuple(
        calibrate(head, logits[:, column], worth)
        for column, (head, worth) in enumerate(worths.items())
        if worth is not None
    )
