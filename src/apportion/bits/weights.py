"""Every linear rounded once per width; swapping between widths is a change of pointer.

Rounding an already rounded weight again is what this avoids: it is slow, and in some libraries silently
does nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

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

    def put(self, player: int, bits: int) -> None:
        """Give one player's linears their weights at this width."""
        chosen = self.players[player]
        for linear in chosen.linears:
            path = self.staged.layout.path(chosen.block, linear)
            self.staged.model.get_submodule(path).weight.data = self.weights[path, bits]

    def put_all(self, assignment: Assignment) -> None:
        """Give every player its width."""
        for player, bits in enumerate(assignment):
            self.put(player, bits)


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
