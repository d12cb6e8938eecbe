"""Plans found by measuring: estimate near the frontier, allocate, then improve by real evaluations. [ours]

1. Every player alone at every lower width: the prior.
2. Random plans near the budgets asked for: optima of the prior under multiplicative noise that falls from
   round to round. A ridge regression that shrinks towards the prior, with interactions inside blocks (between
   all players when they are few), is refitted after each round.
3. For each budget a fit that weights samples by their distance in bits, its optimum by the program of
   `allocate`, uniform plans, and swaps of widths between players, most promising first, each measured; the fit
   learns from them. The plan that is kept is the best of all that were measured within the budget.

The number of evaluations is stated and never exceeded. Given seed and values everything is deterministic as long
as the solver proves its optima within SOLVER_SECONDS; then a resumed search asks for the same assignments and finds
them in the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from jaxtyping import Float, Int

from apportion.bits.game import COALITIONS, Assignment, Costs, Game, Samples, Values
from apportion.bits.plan.allocate import allocate
from apportion.bits.plan.budget import Budget
from apportion.bits.plan.regression import PAIR_PENALTIES, Prior, fit_quadratic
from apportion.bits.plan.sensitivity import Sensitivity, choices_of, shares, surrogate
from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.core.progress import expect, spent_s
from apportion.core.seeds import stream

ROUNDS = (0.9, 0.6, 0.4, 0.3)  # noise of each round of random plans, in log cost
ESTIMATION_SHARE = 0.6  # of the evaluations; the rest improves plans
NEAR_BITS = 0.35  # samples this far from a budget count 1/e^0.5 in its fit
JITTER_BITS = 0.2
SWAP_BATCH = 16
SOLVE_EVERY = 3  # turns between two runs of the solver on the fit as it has become
FULL_PAIRS = 24  # up to so many players all pairs are fitted, beyond only those inside a block
SOLVER_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Found:
    """The plan kept for one budget.

    Attributes:
        assignment, nll: the best measured plan within the budget, and its loss in nats per token.
        surrogate: the fit it was searched with.
        tried: the best distinct plans measured within this budget, with their losses, best first.
        uniform: uniform plans that fit the budget, best first.
        source: which step proposed it: `uniform`, `random`, `surrogate` or `swap`.
    """

    assignment: Assignment
    nll: float
    surrogate: Sensitivity
    tried: tuple[tuple[Assignment, float], ...]
    source: str
    uniform: tuple[Assignment, ...] = ()


@dataclass
class Search:
    """Values asked for so far, within a limit.

    Attributes:
        game: where values are measured. samples: players, widths, costs. limit: evaluations allowed.
        seen: values of this search, in the order asked. sources: which step asked first.
    """

    game: Game
    samples: Samples
    limit: int
    seed: int
    seen: Values = field(default_factory=dict)
    sources: dict[Assignment, str] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.limit - len(self.seen)

    def ask(self, assignments: Sequence[Assignment], source: str) -> None:
        """Measure what is new, as far as the limit allows."""
        new = [item for item in dict.fromkeys(assignments) if item not in self.seen][: max(self.left, 0)]
        if new:
            for item, nll in zip(new, self.game.values(new), strict=True):
                self.seen[item] = nll
                self.sources[item] = source
            expect(COALITIONS, self.left * spent_s(COALITIONS) / len(self.seen))

    def mean(self, assignment: Assignment) -> float:
        return float(self.seen[assignment].mean())

    def within(self, budget: Budget) -> list[Assignment]:
        """Measured plans that fit a budget, best first."""
        fits = [item for item in self.seen if self.samples.costs.spent(item) <= budget.player_bytes]
        return sorted(fits, key=self.mean)


def require_evaluations(evaluations: int, players: int, widths: int) -> None:
    """Refuse fewer evaluations than uniform plans and each player alone once: there is nothing to fit.

    Raises:
        InputError: saying how many are needed.
    """
    if evaluations < widths + players:
        raise InputError(
            f"--evaluations {evaluations}: expected at least {widths + players} "
            f"({widths} uniform plans and {players} players alone)",
            "allow more evaluations, or fewer players (blocks) or --widths",
        )


def search(
    game: Game, samples: Samples, budgets: Sequence[Budget], *, evaluations: int, seed: int
) -> tuple[list[Found], Search]:
    """The best measured plan for each budget.

    Args:
        evaluations: distinct assignments that may be measured, for all budgets together.

    Raises:
        InputError: fewer evaluations than players and widths.
    """
    players, widths = len(samples.costs.players), len(samples.costs.widths)
    require_evaluations(evaluations, players, widths)
    state = Search(game, samples, evaluations, seed)
    state.ask([samples.costs.uniform(column) for column in range(widths)], "uniform")
    prior = alone(state)
    explore(state, prior, budgets)
    found = []
    for index, budget in enumerate(budgets):
        quota = state.left // (len(budgets) - index)
        found.append(improve(state, prior, budget, quota))
    # a later budget's search may have measured a plan that fits an earlier budget and is better
    return [settle(state, item, budget) for item, budget in zip(found, budgets, strict=True)], state


def alone(state: Search) -> Float[NDArray[np.float64], "players widths"]:
    """Cost of every player alone at every width, in nats; unmeasured middle widths are interpolated."""
    table = state.samples.costs
    players, columns = len(table.players), len(table.widths)
    high = table.uniform(-1)
    every = players * (columns - 1)
    measured = range(columns - 1) if state.left >= 2.5 * every else [0]
    single = {(p, w): (*high[:p], w, *high[p + 1 :]) for p in range(players) for w in measured}
    state.ask(list(single.values()), "alone")
    costs = np.zeros((players, columns))
    for (player, column), assignment in single.items():
        costs[player, column] = state.mean(assignment) - state.mean(high)
    if len(measured) == 1:
        costs[:, :-1] = costs[:, :1] * shares(table.widths)
    return costs


def explore(state: Search, costs: Float[NDArray[np.float64], "players widths"], budgets: Sequence[Budget]) -> None:
    """Measure random plans near the budgets, better informed from round to round."""
    rng = stream(state.seed, "search")
    floor = positive(costs)
    share = max(0, round(state.limit * ESTIMATION_SHARE) - len(state.seen))
    for index, noise in enumerate(ROUNDS):
        quota = share // len(ROUNDS)
        plans = []
        for _ in range(quota):
            target = float(budgets[int(rng.integers(len(budgets)))].player_bytes)
            target += rng.normal() * JITTER_BITS * bytes_per_bit(state.samples.costs)
            noisy = (
                floor
                * np.exp(noise * rng.normal(size=(len(floor), 1)))
                * np.exp(noise / 2 * rng.normal(size=floor.shape))
            )
            plans.append(relaxed(noisy, state.samples.costs.bytes, int(target)))
        state.ask(plans, "random")
        if index + 1 < len(ROUNDS):
            floor = positive(linear_table(fit(state, costs, None)))


def positive(costs: Float[NDArray[np.float64], "players widths"]) -> Float[NDArray[np.float64], "players widths"]:
    """Costs made positive and falling with the width, so that multiplicative noise explores around them."""
    least = max(float(np.abs(costs[:, 0]).mean()) * 0.05, 1e-6)
    falling = np.maximum.accumulate(np.maximum(costs, 0)[:, ::-1], axis=1)[:, ::-1]
    shape = np.append(np.linspace(1.0, 0.2, costs.shape[1] - 1), 0.0)
    return np.asarray(falling + least * shape)


def bytes_per_bit(costs: Costs) -> float:
    """Bytes of players for one more bit on average, as they are stored where bits do not rise; 1 where bytes do not."""
    low, high = costs.uniform(0), costs.uniform(-1)
    more, bits = costs.spent(high) - costs.spent(low), costs.average_bits(high) - costs.average_bits(low)
    return more / (bits if bits > 0 else costs.stored_bits(high) - costs.stored_bits(low)) if more else 1.0


def relaxed(
    costs: Float[NDArray[np.float64], "players widths"],
    table: Int[NDArray[np.int64], "players widths"],
    budget_bytes: int,
) -> Assignment:
    """Near-optimal widths for additive costs: a Lagrange multiplier by bisection, then the slack is spent.

    >>> import numpy as np
    >>> relaxed(np.asarray([[1.0, 0.0], [3.0, 0.0]]), np.asarray([[10, 20], [10, 20]]), 30)
    (0, 1)
    """
    sizes = table.astype(np.float64)
    rows = np.arange(len(sizes))
    low, high = 0.0, float(costs.max() / max(np.diff(sizes, axis=1).min(), 1.0)) * 4 + 1e-12
    columns = np.zeros(len(sizes), dtype=np.int64)
    for _ in range(40):
        price = (low + high) / 2
        trial = np.argmin(costs + price * sizes, axis=1)
        if sizes[rows, trial].sum() <= budget_bytes:
            columns, high = trial, price
        else:
            low = price
    return tuple(spend_slack(columns, costs, sizes, budget_bytes).tolist())


def spend_slack(
    columns: Int[NDArray[np.int64], " players"],
    costs: Float[NDArray[np.float64], "players widths"],
    sizes: Float[NDArray[np.float64], "players widths"],
    budget_bytes: int,
) -> Int[NDArray[np.int64], " players"]:
    """Raise one player after another, the most valuable step first, while it fits."""
    columns, rows = columns.copy(), np.arange(len(sizes))
    while True:
        slack = budget_bytes - sizes[rows, columns].sum()
        following = np.minimum(columns + 1, sizes.shape[1] - 1)
        step = sizes[rows, following] - sizes[rows, columns]
        gain = costs[rows, columns] - costs[rows, following]
        worth = np.where((step > 0) & (step <= slack) & (gain > 0), gain / np.maximum(step, 1), -1.0)
        if worth.max() <= 0:
            return columns
        columns[int(worth.argmax())] += 1


def linear_table(found: Sensitivity) -> Float[NDArray[np.float64], "players widths"]:
    """A fit's linear costs as a table, the highest width free."""
    table = np.zeros(found.costs.bytes.shape)
    table[found.choices[:, 0], found.choices[:, 1]] = found.linear
    return table


def fit(
    state: Search,
    costs: Float[NDArray[np.float64], "players widths"],
    budget: Budget | None,
    penalties: tuple[float, ...] = PAIR_PENALTIES,
) -> Sensitivity:
    """Regress all that was measured, near a budget if one is given, shrinking towards the prior."""
    samples = state.samples
    choices = choices_of(len(samples.costs.players), len(samples.costs.widths))
    assignments = list(state.seen)
    x = (np.asarray(assignments)[:, choices[:, 0]] == choices[:, 1]).astype(np.float64)
    y = np.asarray([state.mean(item) for item in assignments])
    weights = None
    if budget is not None:
        sizes = np.asarray([samples.costs.spent(item) for item in assignments], dtype=np.float64)
        distance = (sizes - budget.player_bytes) / bytes_per_bit(samples.costs)
        weights = np.exp(-0.5 * (distance / NEAR_BITS) ** 2) + 1e-3
    prior = costs[choices[:, 0], choices[:, 1]]
    spread = np.abs(prior) + 0.25 * float(np.abs(prior).mean()) + 1e-9
    found = fit_quadratic(
        x,
        y,
        choices[:, 0],
        mask=pair_mask(samples, choices),
        prior=Prior(prior, spread),
        weights=weights,
        penalties=penalties,
    )
    details = found.details(len(y))
    return surrogate(samples, "auto", found.linear, found.pair, details, intercept=found.intercept)


def pair_mask(samples: Samples, choices: Int[NDArray[np.int64], "choices 2"]) -> NDArray[np.bool_]:
    """Which interactions are fitted."""
    players = samples.costs.players
    if len(players) <= FULL_PAIRS:
        return np.ones((len(choices), len(choices)), dtype=bool)
    blocks = np.asarray([players[player].block for player in choices[:, 0].tolist()])
    return np.asarray(blocks[:, None] == blocks[None, :])


def improve(state: Search, costs: Float[NDArray[np.float64], "players widths"], budget: Budget, quota: int) -> Found:
    """Propose by the fit, measure, learn, until the quota is spent or nothing new is promising."""
    stop = max(state.left - quota, 0)
    found = fit(state, costs, budget)
    penalties = (found.details["pair_penalty"],)
    for turn in count():
        if state.left <= stop:
            break
        before = len(state.seen)
        if turn % SOLVE_EVERY == 0:
            state.ask([allocate(found, budget, seconds=SOLVER_SECONDS).assignment], "surrogate")
        best = state.within(budget)[0]
        swaps = promising(found, state, best, budget)[: min(SWAP_BATCH, state.left - stop)]
        state.ask(swaps, "swap")
        if len(state.seen) == before:
            break
        found = fit(state, costs, budget, penalties)
    best = state.within(budget)[0]
    return Found(best, state.mean(best), found, (), state.sources[best])


def promising(found: Sensitivity, state: Search, plan: Assignment, budget: Budget) -> list[Assignment]:
    """Neighbours of a plan that fit and were not measured, the best predicted first.

    A neighbour raises one player by one width, lowers one by one width, or both.
    """
    moves = [(p, c + d) for p, c in enumerate(plan) for d in (-1, 1) if 0 <= c + d <= found.costs.high]
    singles = [changed(plan, [move]) for move in moves]
    doubles = [
        changed(plan, [one, other])
        for one in moves
        for other in moves
        if one[1] > plan[one[0]] and other[1] < plan[other[0]] and one[0] != other[0]
    ]
    near = [
        item
        for item in dict.fromkeys(singles + doubles)
        if item not in state.seen and state.samples.costs.spent(item) <= budget.player_bytes
    ]
    predicted = predict_all(found, near)
    return [near[index] for index in np.argsort(predicted, kind="stable").tolist()]


def changed(plan: Assignment, moves: Sequence[tuple[int, int]]) -> Assignment:
    """A plan with some players at other widths."""
    new = list(plan)
    for player, column in moves:
        new[player] = column
    return tuple(new)


def predict_all(found: Sensitivity, assignments: Sequence[Assignment]) -> Float[NDArray[np.float64], " assignments"]:
    """Predicted losses of many assignments."""
    if not assignments:
        return np.zeros(0)
    x = (np.asarray(assignments)[:, found.choices[:, 0]] == found.choices[:, 1]).astype(np.float64)
    return np.asarray(found.intercept + x @ found.linear + ((x @ found.pair) * x).sum(1) / 2)


def settle(state: Search, found: Found, budget: Budget) -> Found:
    """The best plan of the whole search within this budget, and the best ten that were tried."""
    ranked = state.within(budget)
    best = ranked[0]
    tried = tuple((item, state.mean(item)) for item in ranked[:10])
    level = tuple(item for item in ranked if len(set(item)) == 1)
    return Found(best, state.mean(best), found.surrogate, tried, state.sources[best], level)
