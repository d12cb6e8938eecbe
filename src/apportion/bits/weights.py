"""Every linear rounded once per width; swapping between widths is a change of pointer.

Rounding an already rounded weight again is what this avoids: it is slow, and in some libraries silently
does nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from apportion.bits.formats import Width, require_groups
from apportion.bits.model import StagedModel
from apportion.bits.players import Assignment, Player
from apportion.bits.rounding import Rounded, Rounding
from apportion.core.progress import progress


@dataclass(frozen=True)
class WeightBank:
    """Dequantized weights in the compute dtype, by (linear path, bits)."""

    staged: StagedModel
    players: tuple[Player, ...]
    weights: Mapping[tuple[str, int], Tensor]

    @cached_property
    def parameters(self) -> tuple[tuple[tuple[str, nn.Parameter], ...], ...]:
        """Path and weight of every player's linears: looking them up by name costs more than a swap."""
        return tuple(
            tuple((path, self.staged.model.get_submodule(path).weight) for path in player_paths(self.staged, player))
            for player in self.players
        )

    def put(self, player: int, bits: int) -> None:
        """Give one player's linears their weights at this width."""
        for path, parameter in self.parameters[player]:
            parameter.data = self.weights[path, bits]

    def put_all(self, assignment: Assignment) -> None:
        """Give every player its width."""
        for player, bits in enumerate(assignment):
            self.put(player, bits)

    @cached_property
    def inside(self) -> tuple[tuple[int, ...], ...]:
        """Players of every block."""
        blocks = range(self.staged.layout.block_count)
        return tuple(tuple(i for i, player in enumerate(self.players) if player.block == block) for block in blocks)

    def put_block(self, block: int, widths: Assignment) -> None:
        """Give one block's players their widths, in the players' order."""
        for player, bits in zip(self.inside[block], widths, strict=True):
            self.put(player, bits)


def player_paths(staged: StagedModel, player: Player) -> list[str]:
    """Module paths of a player's linears."""
    return [staged.layout.path(player.block, linear) for linear in player.linears]


def linear_columns(staged: StagedModel) -> dict[str, int]:
    """Columns (input features) of every linear, by path."""
    return {path: weight.shape[1] for path, weight in staged.originals.items()}


def round_all(
    staged: StagedModel, rounding: Rounding, widths: Iterable[int], group_size: int
) -> dict[tuple[str, int], Rounded]:
    """Round every linear of every block to every width, each from the checkpoint's own weight.

    Raises:
        InputError: the group size does not divide some linears; all of them are listed, before any work.
    """
    require_groups(linear_columns(staged), group_size)
    jobs = [(path, bits) for path in staged.originals for bits in widths]
    found: dict[tuple[str, int], Rounded] = {}
    with progress(f"rounding ({rounding.name})", len(jobs), "tensors") as advance:
        for path, bits in jobs:
            weight = staged.originals[path].to(staged.placement.device)
            found[path, bits] = rounding.round(weight, Width(bits, group_size), None)
            advance()
    return found


def bank_of(staged: StagedModel, players: tuple[Player, ...], rounded: Mapping[tuple[str, int], Rounded]) -> WeightBank:
    """Decode rounded weights into the compute dtype, ready to be swapped."""
    device, dtype = staged.placement.device, staged.compute_dtype
    return WeightBank(staged, players, {key: item.dequantize(dtype).to(device) for key, item in rounded.items()})


def player_bytes(staged: StagedModel, player: Player, rounding: Rounding, bits: int, group_size: int) -> int:
    """Bytes of a player's saved tensors at a width."""
    total = 0
    for linear in player.linears:
        weight = staged.originals[staged.layout.path(player.block, linear)]
        total += rounding.nbytes(weight.shape[0], weight.shape[1], Width(bits, group_size), weight.dtype)
    return total


def player_parameters(staged: StagedModel, player: Player) -> int:
    """Number of weights of a player."""
    return sum(staged.originals[staged.layout.path(player.block, linear)].numel() for linear in player.linears)
