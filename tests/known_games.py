"""Games whose answers are known, and which count what they are asked."""

from collections.abc import Callable, Sequence

import numpy as np

from apportion.bits.game import Assignment, Costs, Player
from apportion.core.arrays import NDArray
from apportion.formats import grid_width

PAPER = (2, 4)  # bits


def costs_table(
    sizes: Sequence[Sequence[int]],
    bits: Sequence[int] = PAPER,
    parameters: Sequence[int] | None = None,
    fixed_bytes: int = 0,
) -> Costs:
    """Players, one in a block, whose widths cost these bytes."""
    players = tuple(Player(f"block {i}", i, ("weight",)) for i in range(len(sizes)))
    return Costs(
        players=players,
        widths=tuple(grid_width(one, 64) for one in bits),
        bytes=np.asarray(sizes, dtype=np.int64),
        bits=np.tile(np.asarray(bits, dtype=np.float64), (len(players), 1)),
        parameters=np.asarray(parameters or [1] * len(players), dtype=np.int64),
        fixed_bytes=fixed_bytes,
    )


def even_costs(players: int, bits: Sequence[int] = PAPER) -> Costs:
    """Players of equal size, `bits` bytes each."""
    return costs_table([list(bits)] * players, bits)


class KnownGame:
    """A game given by a function; every window has the same value."""

    def __init__(
        self, players: int, value: Callable[[Assignment], float], windows: int = 3, bits: Sequence[int] = PAPER
    ) -> None:
        self.costs = even_costs(players, bits)
        self.value, self.windows = value, windows
        self.known: dict[Assignment, float] = {}

    def values(self, assignments: Sequence[Assignment]) -> NDArray[np.float64]:
        for item in assignments:
            self.known.setdefault(item, self.value(item))
        return np.asarray([[self.known[item]] * self.windows for item in assignments], dtype=np.float64)
