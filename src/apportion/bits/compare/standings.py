"""Measured plans -> who is best, by how much, and what is a tie: the numbers of a comparison as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from apportion.bits.compare.methods import Choice
from apportion.bits.compare.optimum import Exhaustive, regret
from apportion.bits.game import Samples, Values, encode
from apportion.bits.plan import Budget
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json, plain
from apportion.core.bootstrap import Bootstrap, Interval

REFERENCES = ("optimum",)  # no method: it looks at every plan; "best" is among the others


@dataclass(frozen=True)
class Scoreboard:
    """Measured values of every method's plans.

    Attributes:
        budgets: the grid asked for, then the curve.
        grid: how many of the budgets are the grid's.
        choices: per method, its plans for every budget.
        values: NLL per window of every distinct plan on the held-out text.
        high: NLL per window with every player at the highest width.
        bootstrap: resamples of the windows, shared so that differences are paired.
    """

    samples: Samples
    budgets: Sequence[Budget]
    grid: int
    choices: Mapping[str, Sequence[Choice]]
    values: Values
    high: Float[NDArray[np.float64], " windows"]
    bootstrap: Bootstrap

    def nll(self, method: str, place: int) -> Float[NDArray[np.float64], " windows"]:
        """NLL per window of a method's plan at a budget; the mean of its plans where it has several."""
        return np.asarray(np.mean([self.values[item] for item in self.choices[method][place]], axis=0))

    def excess(self, method: str) -> Float[NDArray[np.float64], " windows"]:
        """NLL above all-highest per window, averaged over the curve's budgets."""
        places = range(self.grid, len(self.budgets))
        return np.asarray(np.mean([self.nll(method, place) for place in places], axis=0) - self.high)

    def best(self, place: int | None) -> str:
        """The method of least loss at a budget (over the curve, if None); references do not compete."""
        rivals = [name for name in self.choices if name not in REFERENCES] or list(self.choices)
        return min(rivals, key=lambda name: float(self.loss(name, place).mean()))

    def loss(self, method: str, place: int | None) -> Float[NDArray[np.float64], " windows"]:
        return self.excess(method) if place is None else self.nll(method, place)

    def against_best(self, method: str, place: int | None) -> Interval:
        """Paired difference to the best."""
        best = self.best(place)
        return self.bootstrap.interval(self.loss(method, place) - self.loss(best, place))


def scoreboard(
    samples: Samples,
    budgets: Sequence[Budget],
    grid: int,
    choices: Mapping[str, Sequence[Choice]],
    values: Values,
    seed: int,
) -> Scoreboard:
    """Put measured values beside the plans they belong to."""
    high = values[samples.costs.uniform(-1)]
    return Scoreboard(samples, budgets, grid, choices, values, high, Bootstrap(len(high), seed))


def standings(board: Scoreboard, exhaustive: Exhaustive | None) -> Json:
    """All methods as JSON: perplexities with intervals at the grid, excess over the curve, regret where known."""
    return {name: method_row(board, name, exhaustive) for name in board.choices}


def method_row(board: Scoreboard, method: str, exhaustive: Exhaustive | None) -> Json:
    row: Json = {
        "budgets": [budget_cell(board, method, place) for place in range(board.grid)],
        "excess": None,
        "regret": None,
    }
    if len(board.budgets) > board.grid:
        own = board.bootstrap.interval(board.excess(method))
        row["excess"] = {**plain(own), **against(board, method, None)}
        row["curve"] = [
            {"asked": board.budgets[place].asked, "excess": float((board.nll(method, place) - board.high).mean())}
            for place in range(board.grid, len(board.budgets))
        ]
        row["regret"] = regrets(board, method, exhaustive) if exhaustive is not None else None
    return row


def budget_cell(board: Scoreboard, method: str, place: int) -> Json:
    """One method at one budget."""
    plans = board.choices[method][place]
    own = board.bootstrap.interval(board.nll(method, place))
    each = [float(board.values[item].mean()) for item in plans]
    bits = [board.samples.costs.average_bits(item) for item in plans]
    return {
        "asked": board.budgets[place].asked,
        "avg_bits": float(np.mean(bits)),
        "plans": [encode(item) for item in plans],
        "perplexity": float(np.exp(own.mean)),
        "perplexity_low": float(np.exp(own.low)),
        "perplexity_high": float(np.exp(own.high)),
        "nll": own.mean,
        "spread": float(np.std(each)) if len(each) > 1 else None,
        **against(board, method, place),
    }


def against(board: Scoreboard, method: str, place: int | None) -> Json:
    """Whether a method is best, tied with the best, or worse; differences in nats per token."""
    difference = board.against_best(method, place)
    return {"best": difference.mean == 0.0, "tie": difference.tie, "behind_best": plain(difference)}


def regrets(board: Scoreboard, method: str, exhaustive: Exhaustive) -> Json:
    """Calibration NLL above the exhaustive optimum's at every budget of the curve, in nats per token."""
    places = range(board.grid, len(board.budgets))
    curve = [
        float(np.mean([regret(exhaustive, item, board.budgets[place]) for item in board.choices[method][place]]))
        for place in places
    ]
    return {"mean": float(np.mean(curve)), "curve": curve}
