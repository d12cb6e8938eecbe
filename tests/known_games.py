"""Games whose answers are known, and which count what they are asked."""

from collections.abc import Callable, Sequence

import numpy as np

from apportion.bits.game.players import Assignment, Player
from apportion.bits.plan.budget import CostTable
from apportion.core.arrays import NDArray


class KnownGame:
    """A game given by a function; every window has the same value."""

    def __init__(self, players: int, value: Callable[[Assignment], float], windows: int = 3) -> None:
        self.players = tuple(Player(f"block {i}", i, ("weight",)) for i in range(players))
        self.value, self.windows = value, windows
        self.known: dict[Assignment, float] = {}

    def values(self, assignments: Sequence[Assignment]) -> NDArray[np.float64]:
        for item in assignments:
            self.known.setdefault(item, self.value(item))
        return np.asarray([[self.known[item]] * self.windows for item in assignments], dtype=np.float64)


def even_costs(players: int, widths: tuple[int, ...] = (2, 4)) -> CostTable:
    """Players of equal size, `bits` bytes each."""
    return CostTable(widths, np.asarray([widths] * players, dtype=np.int64), 0)
