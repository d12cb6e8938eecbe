"""The plan for a file: the optimum of the costs alone, then corrected by measuring whole plans. [ours]

1. Costs of every type of every matrix alone (`fisher`): the prior, and its optimum within the budget.
2. Rivals: plans that stand for themselves, such as the standard mix of that size. What is kept is never behind them.
3. Random plans near the budget: optima of the costs under multiplicative noise that falls from round to round. After
   each round every matrix gets one factor on its costs, fitted to all that was measured and held near one by a ridge
   of least leave-one-out error: costs of a matrix's types are wrong together (context, interaction), rarely apart.
4. Swaps around the best plan, the most promising first, each measured; the factors learn from them.

The plan kept is the best of all that were measured within the budget. `bits.plan.search` measures every player alone
first; with hundreds of players that takes all the evaluations that this takes in all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from apportion.bits.game import Assignment, Costs, Game
from apportion.bits.gguf.game import PLANS
from apportion.bits.plan.search import relaxed
from apportion.core.arrays import NDArray
from apportion.core.progress import expect, spent_s
from apportion.core.seeds import stream

NOISES = (0.6, 0.4, 0.25)  # of each round of random plans, in log cost
ROUNDS_SHARE = 0.6  # of the evaluations; the rest are swaps
SWAP_BATCH = 12
NEAR = 40  # matrices whose steps up, and whose steps down, are paired in swaps
SPREADS = tuple(10.0**power for power in np.arange(-2.0, 1.01, 0.25))  # of factors around one
Table = Float[NDArray[np.float64], "players rungs"]


@dataclass
class FileSearch:
    """Plans measured so far, and what they taught.

    Attributes:
        game: None where nothing is to be measured.
        prior: costs of every rung of every player alone. factors: what each player's costs are multiplied by.
        seen: value of every plan measured, in the order asked. sources: which step asked.
        rivals: plans that stand for themselves, by name.
        misfit: leave-one-out error of the latest fit, relative to the spread of values.
    """

    game: Game | None
    costs: Costs
    budget_bytes: int
    prior: Table
    limit: int
    seed: int
    seen: dict[Assignment, float] = field(default_factory=dict)
    sources: dict[Assignment, str] = field(default_factory=dict)
    factors: NDArray[np.float64] = field(init=False)
    misfit: float = 1.0
    rivals: Mapping[Assignment, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.factors = np.ones(len(self.prior))

    @property
    def table(self) -> Table:
        """Costs as they are believed now."""
        return np.asarray(self.prior * self.factors[:, None])

    @property
    def ranked(self) -> list[Assignment]:
        """Plans measured within the budget, the best first."""
        fits = [plan for plan in self.seen if self.costs.spent(plan) <= self.budget_bytes]
        return sorted(fits, key=self.seen.__getitem__)

    @property
    def best(self) -> Assignment:
        """The best plan measured within the budget."""
        return self.ranked[0]

    def ask(self, plans: Sequence[Assignment], source: str) -> int:
        """Measure what is new, as far as the limit allows; returns how many that was."""
        new = [plan for plan in dict.fromkeys(plans) if plan not in self.seen][: max(self.limit - len(self.seen), 0)]
        if new:
            assert self.game is not None, "plans were asked for of a search that measures nothing"
            for plan, kl in zip(new, self.game.values(new).mean(axis=1), strict=True):
                self.seen[plan], self.sources[plan] = float(kl), source
            expect(PLANS, max(self.limit - len(self.seen), 0) * spent_s(PLANS) / len(self.seen))
        return len(new)

    def learn(self) -> None:
        """Fit the factors to all that was measured."""
        plans = np.asarray(list(self.seen))
        x = self.prior[np.arange(len(self.prior)), plans]
        self.factors, self.misfit = fit_factors(x, np.asarray(list(self.seen.values())))


def search_file(
    game: Game,
    costs: Costs,
    prior: Table,
    budget_bytes: int,
    *,
    evaluations: int,
    seed: int,
    rivals: Mapping[Assignment, str] = MappingProxyType({}),
) -> FileSearch:
    """Find the plan of least value within a budget.

    Args:
        prior: [players, rungs] costs alone, in the game's unit. budget_bytes: for the players' tensors.
        evaluations: plans that may be measured, at least one.
        rivals: plans within the budget that are measured after the optimum of the costs, and their names.
    """
    state = FileSearch(game, costs, budget_bytes, falling(prior), evaluations, seed, rivals=rivals)
    state.ask([relaxed(state.table, costs.bytes, budget_bytes)], "costs alone")
    for plan, name in rivals.items():
        state.ask([plan], name)
    rng = stream(seed, "file search")
    for noise in NOISES:
        count = round(evaluations * ROUNDS_SHARE / len(NOISES))
        tables = [state.table * np.exp(noise * rng.normal(size=(len(prior), 1))) for _ in range(count)]
        state.ask([relaxed(table, costs.bytes, budget_bytes) for table in tables], "random")
        state.learn()
        state.ask([relaxed(state.table, costs.bytes, budget_bytes)], "costs corrected")
    while state.ask(swaps(state)[:SWAP_BATCH], "swap"):
        state.learn()
        state.ask([relaxed(state.table, costs.bytes, budget_bytes)], "costs corrected")
    return state


def falling(costs: Table) -> Table:
    """Costs that never rise with the rung: an estimate that does is noise.

    >>> falling(np.asarray([[4.0, 1.0, 2.0, 0.5]])).tolist()
    [[4.0, 1.0, 1.0, 0.5]]
    """
    return np.asarray(np.minimum.accumulate(np.maximum(costs, 0.0), axis=1))


def swaps(state: FileSearch) -> list[Assignment]:
    """Neighbours of the best plan that fit and were not measured, the best predicted first.

    A neighbour raises one player, or raises one and lowers another, each to its next different rung.
    """
    table, sizes, plan = state.table, state.costs.bytes, state.best
    room = state.budget_bytes - state.costs.spent(plan)
    ups = steps(table, sizes, plan, +1)[:NEAR]
    downs = steps(table, sizes, plan, -1)[:NEAR]
    moves: list[tuple[float, Assignment]] = []
    for p, rung, size, change in ups:
        if size <= room:
            moves.append((change, (*plan[:p], rung, *plan[p + 1 :])))
        for q, lower, saved, loss in downs:
            if p != q and size + saved <= room:
                one = list(plan)
                one[p], one[q] = rung, lower
                moves.append((change + loss, tuple(one)))
    return [item for _, item in sorted(moves, key=lambda move: move[0]) if item not in state.seen]


def steps(
    table: Table, sizes: NDArray[np.int64], plan: Assignment, direction: int
) -> list[tuple[int, int, int, float]]:
    """Each player's next rung of another size: (player, rung, bytes more, cost more), the best for its bytes first."""
    found = []
    for player, rung in enumerate(plan):
        following = rung + direction
        while 0 <= following < table.shape[1] and sizes[player, following] == sizes[player, rung]:
            following += direction
        if 0 <= following < table.shape[1]:
            more = int(sizes[player, following] - sizes[player, rung])
            found.append((player, following, more, float(table[player, following] - table[player, rung])))
    return sorted(found, key=lambda step: step[3] / abs(step[2]))


def fit_factors(
    x: Float[NDArray[np.float64], "plans players"], y: Float[NDArray[np.float64], " plans"]
) -> tuple[NDArray[np.float64], float]:
    """One factor for each player, so that y is about x @ factors.

    All factors share a scale (the ratio of sums) and spread around it by a ridge of least leave-one-out error.

    >>> x = np.asarray([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [3.0, 1.0]])
    >>> factors, misfit = fit_factors(x, x @ np.asarray([2.0, 1.0]))
    >>> np.round(factors, 2).tolist(), misfit < 0.1
    ([2.0, 1.0], True)
    """
    scale = float(y.sum() / max(x.sum(), 1e-300))
    target = y - scale * x.sum(1)
    gram = x @ x.T
    unit = float(np.trace(gram)) / len(y) or 1.0
    best: tuple[float, NDArray[np.float64]] | None = None
    for spread in SPREADS:
        weight = np.linalg.inv(gram + unit / len(y) / spread**2 * np.eye(len(y)))
        alpha = weight @ target
        error = float(np.mean((alpha / np.diag(weight)) ** 2))
        if best is None or error < best[0]:
            best = (error, alpha)
    assert best is not None
    factors = np.maximum(scale + x.T @ best[1], 0.1 * scale)
    return factors, float(np.sqrt(best[0]) / max(y.std(), 1e-300))
