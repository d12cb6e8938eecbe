"""The exhaustive optimum: every coalition measured, where that can be done, and regret against it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from apportion.bits.game import Assignment, Costs, Game
from apportion.bits.plan import Budget
from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.formats.width import Width, listed

MAX_PLAYERS = 16


@dataclass(frozen=True)
class Exhaustive:
    """The value of every coalition of two widths.

    Attributes:
        players: how many.
        values: [2 ** players] mean NLL in nats per token; in index order the first player is the highest bit,
            and a set bit is the low width.
        spent: [2 ** players] bytes of the players' tensors.
    """

    players: int
    values: Float[NDArray[np.float64], " coalitions"]
    spent: Int[NDArray[np.int64], " coalitions"]

    def value(self, assignment: Assignment) -> float:
        """The measured value of an assignment."""
        return float(self.values[index_of(assignment)])

    def best(self, budget: Budget) -> Assignment:
        """The assignment of least value within a budget (ties: the first in index order)."""
        allowed = np.where(self.spent <= budget.player_bytes, self.values, np.inf)
        return assignment_at(int(allowed.argmin()), self.players)

    def best_by_demoted(self) -> list[Assignment]:
        """The assignment of least value for each number of demoted players, 0 to all."""
        demoted = demoted_counts(self.players)
        return [
            assignment_at(int(np.where(demoted == count, self.values, np.inf).argmin()), self.players)
            for count in range(self.players + 1)
        ]


def index_of(assignment: Assignment) -> int:
    """Place of an assignment in `Exhaustive.values`.

    >>> index_of((0, 1, 1))
    4
    """
    return int("".join("0" if column else "1" for column in assignment), 2)


def assignment_at(index: int, players: int) -> Assignment:
    """The assignment at a place.

    >>> assignment_at(4, 3)
    (0, 1, 1)
    """
    return tuple(0 if bit == "1" else 1 for bit in format(index, f"0{players}b"))


def demoted_counts(players: int) -> Int[NDArray[np.int64], " coalitions"]:
    """How many players each coalition demotes."""
    return np.asarray([index.bit_count() for index in range(2**players)], dtype=np.int64)


def require_exhaustible(players: int, widths: Sequence[Width]) -> None:
    """Refuse what cannot be enumerated.

    Raises:
        InputError: more than MAX_PLAYERS players, or other than two widths; says the count it would need.
    """
    needed = len(widths) ** players
    if players > MAX_PLAYERS or len(widths) != 2:
        raise InputError(
            f"method optimum: {players} players with widths {listed(widths)} would need {needed:,} "
            f"evaluations; at most {MAX_PLAYERS} players with two widths ({2**MAX_PLAYERS:,}) are enumerated",
            "leave optimum out of --methods, or use --players blocks and two --widths on a smaller model",
        )


def exhaust(game: Game, costs: Costs) -> Exhaustive:
    """Measure every coalition; what the game knows (from its log, for example) is not measured again.

    Raises:
        InputError: as `require_exhaustible`.

    Cost: with one player per block 2 ** (players + 1) - 2 block forwards: two and a head for each coalition.
    """
    players = len(costs.players)
    require_exhaustible(players, costs.widths)
    values = game.values([assignment_at(index, players) for index in range(2**players)]).mean(1)
    bits = (np.arange(len(values))[:, None] >> np.arange(players)[::-1]) & 1
    saved = costs.bytes[:, 1] - costs.bytes[:, 0]
    return Exhaustive(players, values, costs.bytes[:, 1].sum() - bits @ saved)


def regret(exhaustive: Exhaustive, assignment: Assignment, budget: Budget) -> float:
    """How much worse than the best plan of the same budget, in nats per token; never negative."""
    return exhaustive.value(assignment) - exhaustive.value(exhaustive.best(budget))
