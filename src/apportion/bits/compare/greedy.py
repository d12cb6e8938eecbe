"""Greedy demotion by real evaluation: one player one width down at a time, always the cheapest measured step."""

from collections.abc import Sequence

from apportion.bits.game.game import Game
from apportion.bits.game.players import Assignment, uniform
from apportion.bits.plan.budget import Budget, Costs
from apportion.bits.plan.plan import spent
from apportion.core.progress import progress


def demotion_path(game: Game, costs: Costs) -> list[Assignment]:
    """From all high to all low; each step is the one of least added NLL per byte saved (ties: the first player).

    One path serves every budget. With two widths it asks for n (n + 1) / 2 + 1 values; the candidates of a step
    share prefixes.
    """
    widths, players = costs.widths, len(game.players)
    path = [uniform(game.players, widths[-1])]
    value = float(game.values(path).mean())
    with progress("greedy demotion", players * (len(widths) - 1), "steps") as advance:
        while candidates := steps_down(path[-1], widths):
            values = game.values(candidates).mean(1)
            before = spent(costs, path[-1])
            price = [
                (float(after) - value) / max(before - spent(costs, item), 1)
                for item, after in zip(candidates, values, strict=True)
            ]
            best = min(range(len(candidates)), key=price.__getitem__)
            path.append(candidates[best])
            value = float(values[best])
            advance()
    return path


def steps_down(assignment: Assignment, widths: tuple[int, ...]) -> list[Assignment]:
    """Every assignment with one player one width lower.

    >>> steps_down((2, 3), (2, 3, 4))
    [(2, 2)]
    """
    found = []
    for player, bits in enumerate(assignment):
        column = widths.index(bits)
        if column > 0:
            found.append((*assignment[:player], widths[column - 1], *assignment[player + 1 :]))
    return found


def first_within(path: Sequence[Assignment], costs: Costs, budget: Budget) -> Assignment:
    """The first assignment of a demotion path that a budget pays for."""
    return next(item for item in path if spent(costs, item) <= budget.player_bytes)
