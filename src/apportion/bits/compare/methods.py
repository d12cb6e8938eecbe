"""Every way to choose widths, by name: a method is a function from what was measured to plans for budgets.

To add one: write `def choose(context, budgets) -> list[Choice]` and add a line to METHODS.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from apportion.bits.compare.elsewhere import Elsewhere
from apportion.bits.compare.greedy import demotion_path, first_within
from apportion.bits.compare.optimum import Exhaustive, exhaust
from apportion.bits.compare.scores import activation, lim, llm_mq, one_at_a_time, zd
from apportion.bits.game import Assignment, Costs, Game, MeasuredGame, Samples
from apportion.bits.plan import Budget, Sensitivity, allocate, estimate, search
from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.core.log import AppendLog
from apportion.core.progress import progress
from apportion.core.seeds import stream

RANDOM_PLANS = 5
EXHAUSTIVE = ("optimum",)  # asked for by name only
Choice = tuple[Assignment, ...]
"""The plan of a method for one budget; several where a method is random."""


class Noting:
    """A game that notes what it is asked."""

    def __init__(self, game: Game, asked: set[Assignment]) -> None:
        self.game, self.asked = game, asked
        self.costs: Costs = game.costs

    def values(self, assignments: Sequence[Assignment]) -> Float[NDArray[np.float64], "assignments windows"]:
        """As the game has them."""
        self.asked.update(assignments)
        return self.game.values(assignments)


@dataclass
class Context:
    """What every method chooses from: one model, one text, one set of measured values.

    Attributes:
        game: on the text that methods may look at.
        samples: the values of SPQE that all methods share.
        folder: where further values are appended as they are measured.
        alpha: shrinkage of coopq's covariance. seed: of random plans.
        asked: coalitions that methods asked for so far, whether or not they were known already.
        allowed: evaluations that `auto` may ask for, of all budgets.
        elsewhere: where its best few plans of a budget meet; None: its best plan on the search's own windows is kept.
    """

    game: MeasuredGame
    samples: Samples
    folder: Path
    alpha: float = 0.5
    seed: int = 0
    asked: set[Assignment] = field(default_factory=set)
    allowed: int = 2000
    elsewhere: Elsewhere | None = None

    @contextmanager
    def measuring(self, log: str = "calibration") -> Iterator[Game]:
        """The game on the calibration text; it knows the samples' values and appends new ones to its own log.

        The samples' own log stays as SPQE left it, so that no estimator sees values that another method asked for.
        What is asked is noted in `asked`.
        """
        with AppendLog(self.folder / f"{log}.log", self.samples.settings, resume=True) as file:
            yield Noting(self.game.beside(file, self.samples.values), self.asked)

    @cached_property
    def exhaustive(self) -> Exhaustive:
        """The value of every coalition."""
        with self.measuring("optimum") as game:
            return exhaust(game, self.samples.costs)


Method = Callable[[Context, Sequence[Budget]], list[Choice]]


def surrogate_of(estimator: Callable[[Context], Sensitivity]) -> Method:
    """The method that allocates a surrogate's optimum to every budget."""

    def choose(context: Context, budgets: Sequence[Budget]) -> list[Choice]:
        sensitivity = estimator(context)
        found: list[Choice] = []
        with progress(f"allocating ({sensitivity.method})", len(budgets), "budgets") as advance:
            for budget in budgets:
                found.append((allocate(sensitivity, budget).assignment,))
                advance()
        return found

    return choose


def measured_alone(context: Context) -> Sensitivity:
    with context.measuring() as game:
        return one_at_a_time(game, context.samples)


def greedy(context: Context, budgets: Sequence[Budget]) -> list[Choice]:
    """Greedy demotion by real evaluation."""
    with context.measuring() as game:
        path = demotion_path(game, game.costs)
    return [(first_within(path, game.costs, budget),) for budget in budgets]


def random_plans(context: Context, budgets: Sequence[Budget]) -> list[Choice]:
    """RANDOM_PLANS plans per budget: players demoted to the lowest width in a random order until it is met."""
    return [tuple(random_plan(context, budget, draw) for draw in range(RANDOM_PLANS)) for budget in budgets]


def random_plan(context: Context, budget: Budget, draw: int) -> Assignment:
    """One draw; the same order for every budget, so that a smaller budget demotes more of the same players."""
    costs = context.samples.costs
    columns = list(costs.uniform(-1))
    for player in stream(context.seed, "random plan", draw).permutation(len(columns)).tolist():
        if costs.spent(tuple(columns)) <= budget.player_bytes:
            break
        columns[player] = 0
    return tuple(columns)


def auto(context: Context, budgets: Sequence[Budget]) -> list[Choice]:
    """Plans found by measuring, `context.allowed` evaluations for all budgets together; the best few meet elsewhere."""
    with context.measuring("auto") as game:
        found, _ = search(game, context.samples, budgets, evaluations=context.allowed, seed=context.seed)
    kept = [item.assignment for item in found] if context.elsewhere is None else context.elsewhere.choose(found)
    return [(item,) for item in kept]


def optimum(context: Context, budgets: Sequence[Budget]) -> list[Choice]:
    """The best of all coalitions on the calibration text."""
    return [(context.exhaustive.best(budget),) for budget in budgets]


METHODS: dict[str, Method] = {
    "auto": auto,
    "coopq": surrogate_of(lambda c: estimate(c.samples, "coopq", alpha=c.alpha)),
    "regression": surrogate_of(lambda c: estimate(c.samples, "regression")),
    "shapley": surrogate_of(lambda c: estimate(c.samples, "shapley")),
    "one-at-a-time": surrogate_of(measured_alone),
    "greedy": greedy,
    "llm-mq": surrogate_of(lambda c: llm_mq(c.game.bank, c.game.text, c.samples)),
    "lim": surrogate_of(lambda c: lim(c.game.bank, c.game.text, c.samples)),
    "zd": surrogate_of(lambda c: zd(c.game.bank, c.samples)),
    "zd-two-sided": surrogate_of(lambda c: zd(c.game.bank, c.samples, two_sided=True)),
    "activation": surrogate_of(lambda c: activation(c.game.bank, c.game.text, c.samples)),
    "random": random_plans,
    "optimum": optimum,
}
ISOLATED = ("one-at-a-time", "llm-mq", "lim", "zd", "activation")
"""Baselines that score each player by itself."""


DEFAULT = tuple(name for name in METHODS if name not in EXHAUSTIVE)
"""What is compared where nothing is named."""


def require_methods(names: Sequence[str]) -> None:
    """Refuse unknown methods, naming all of them and what is known.

    Raises:
        InputError: unknown, repeated or no methods.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names or len(set(names)) != len(names):
        problem = f"unknown: {', '.join(unknown)}" if unknown else "expected each method once, at least one"
        raise InputError(f"--methods {','.join(names)}: {problem}", f"choose from {', '.join(METHODS)}")
