"""Greedy demotion by real evaluation: one player one width down at a time, always the cheapest measured step."""

from collections.abc import Sequence

from apportion.bits.game import Assignment, Costs, Game
from apportion.bits.plan import Budget
from apportion.core.progress import progress


def demotion_path(game: Game, costs: Costs) -> list[Assignment]:
    """From all high to all low; each step is the one of least added NLL per byte saved (ties: the first player).

    One path serves every budget. With two widths it asks for n (n + 1) / 2 + 1 values; the candidates of a step
    share prefixes.
    """
    path = [costs.uniform(-1)]
    value = float(game.values(path).mean())
    with progress("greedy demotion", len(costs.players) * costs.high, "steps") as advance:
        while candidates := steps_down(path[-1]):
            values = game.values(candidates).mean(1)
            before = costs.spent(path[-1])
            price = [
                (float(after) - value) / max(before - costs.spent(item), 1)
                for item, after in zip(candidates, values, strict=True)
            ]
            best = min(range(len(candidates)), key=price.__getitem__)
            path.append(candidates[best])
            value = float(values[best])
            advance()
    return path


def steps_down(assignment: Assignment) -> list[Assignment]:
    """Every assignment with one player one width lower.

    >>> steps_down((0, 1))
    [(0, 0)]
    """
    return [
        (*assignment[:player], column - 1, *assignment[player + 1 :])
        for player, column in enumerate(assignment)
        if column > 0
    ]


def first_within(path: Sequence[Assignment], costs: Costs, budget: Budget) -> Assignment:
    """The first assignment of a demotion path that a budget pays for."""
    return next(item for item in path if costs.spent(item) <= budget.player_bytes)
