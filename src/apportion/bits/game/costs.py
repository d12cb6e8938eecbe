"""What every width of every player costs: known before anything is measured, held by every value that needs it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.game.players import Assignment, Player, player_from
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json
from apportion.formats import Format, Width, shape_bytes
from apportion.models.staged import StagedModel


@dataclass(frozen=True)
class Costs:
    """Players, widths, and what the one costs at the other.

    Attributes:
        players: in model order. widths: rising; assignments hold indexes into them.
        bytes: [players, widths] bytes of each player's saved tensors.
        bits: [players, widths] mean bits of its weights, as averages count them (`Width.bits`).
        parameters: [players] number of weights.
        fixed_bytes: what the weight files hold besides, at most a few header bytes more than exact.
    """

    players: tuple[Player, ...]
    widths: tuple[Width, ...]
    bytes: Int[NDArray[np.int64], "players widths"]
    bits: Float[NDArray[np.float64], "players widths"]
    parameters: Int[NDArray[np.int64], " players"]
    fixed_bytes: int

    @property
    def high(self) -> int:
        """Index of the highest width; that of the lowest is 0."""
        return len(self.widths) - 1

    @cached_property
    def _rows(self) -> Int[NDArray[np.int64], " players"]:
        return np.arange(len(self.players))

    def uniform(self, column: int) -> Assignment:
        """Every player at the same width.

        Args:
            column: index of the width; negative ones count from the highest.
        """
        return (column % len(self.widths),) * len(self.players)

    def spent(self, assignment: Assignment) -> int:
        """Bytes of the players' tensors under an assignment."""
        return int(self.bytes[self._rows, list(assignment)].sum())

    def average_bits(self, assignment: Assignment) -> float:
        """Mean bits over all quantized weights, scales not counted (the paper's average)."""
        return float(np.dot(self.bits[self._rows, list(assignment)], self.parameters) / self.parameters.sum())

    def stored_bits(self, assignment: Assignment) -> float:
        """Mean bits over all quantized weights with everything that their tensors hold."""
        return 8 * self.spent(assignment) / float(self.parameters.sum())

    def by_name(self, assignment: Assignment) -> dict[str, str]:
        """Width by player's name."""
        return {player.name: self.widths[index].name for player, index in zip(self.players, assignment, strict=True)}

    def smallest(self) -> int:
        """Bytes of the weight files with every player at the lowest width."""
        return self.spent(self.uniform(0)) + self.fixed_bytes

    def largest(self) -> int:
        """Bytes of the weight files with every player at the highest width."""
        return self.spent(self.uniform(-1)) + self.fixed_bytes


def costs_of(
    staged: StagedModel, players: tuple[Player, ...], widths: tuple[Width, ...], form: Format, fixed_bytes: int
) -> Costs:
    """Count a model's players in a format.

    Raises:
        InputError: the format cannot hold a linear's shape.
    """
    weights = [[staged.originals[path] for path in player.paths(staged.layout)] for player in players]
    table = [[sum(matrix_bytes(form, width, w) for w in own) for width in widths] for own in weights]
    parameters = np.asarray([sum(w.numel() for w in own) for own in weights], dtype=np.int64)
    bits = np.tile([float(width.bits) for width in widths], (len(players), 1))
    return Costs(players, widths, np.asarray(table, dtype=np.int64), bits, parameters, fixed_bytes)


def matrix_bytes(form: Format, width: Width, weight: Tensor) -> int:
    """Bytes of a matrix's saved tensors at a width."""
    rows, columns = weight.shape
    return shape_bytes(form.shapes(width, rows, columns, weight.dtype))


def widths_by_path(staged: StagedModel, costs: Costs, assignment: Assignment) -> dict[str, Width]:
    """Width of every linear, by module path."""
    return {
        path: costs.widths[index]
        for player, index in zip(costs.players, assignment, strict=True)
        for path in player.paths(staged.layout)
    }


def costs_from(content: Json) -> Costs:
    """Read back what `artifact.plain` wrote.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or misshapen.
    """
    return Costs(
        players=tuple(player_from(item) for item in content["players"]),
        widths=tuple(Width(item["name"], item["bits"], item["group_size"]) for item in content["widths"]),
        bytes=np.asarray(content["bytes"], dtype=np.int64),
        bits=np.asarray(content["bits"], dtype=np.float64),
        parameters=np.asarray(content["parameters"], dtype=np.int64),
        fixed_bytes=int(content["fixed_bytes"]),
    )
