"""Every linear rounded once per width; swapping between widths is a change of pointer.

Rounding an already rounded weight again is what this avoids: it is slow, and in some libraries silently
does nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Int
from torch import Tensor, nn

from apportion.bits.game.players import Assignment, Player
from apportion.bits.rounding import Moments, Rounding
from apportion.bits.rounding.sequential import walk
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.formats.packed import Packed, shape_bytes
from apportion.formats.width import Width, require_groups
from apportion.models.staged import StagedModel


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
    staged: StagedModel,
    rounding: Rounding,
    widths: Iterable[int],
    group_size: int,
    windows: Int[Tensor, "windows tokens"] | None = None,
) -> dict[tuple[str, int], Packed]:
    """Round every linear of every block to every width, each from the checkpoint's own weight.

    Args:
        windows: text for roundings that need moments of the inputs. A bank serves plans of all widths, so its
            moments are taken where everything before is at the highest width; `round_plan` takes a plan's own.

    Raises:
        InputError: the group size does not divide some linears; all of them are listed, before any work.
    """
    widths = tuple(sorted(widths))
    return round_linears(staged, rounding, dict.fromkeys(staged.originals, widths), group_size, windows)


def round_plan(
    staged: StagedModel,
    rounding: Rounding,
    bits: Mapping[str, int],
    group_size: int,
    windows: Int[Tensor, "windows tokens"] | None = None,
) -> dict[str, Packed]:
    """Round every linear to its own width, in sequence: each sees what the plan made of the ones before it.

    Args:
        bits: width of every linear, by module path.
        windows: text for roundings that need moments of the inputs.
    """
    jobs = {path: (own,) for path, own in bits.items()}
    found = round_linears(staged, rounding, jobs, group_size, windows)
    return {path: rounded for (path, _), rounded in found.items()}


def round_linears(
    staged: StagedModel,
    rounding: Rounding,
    widths: Mapping[str, tuple[int, ...]],
    group_size: int,
    windows: Int[Tensor, "windows tokens"] | None,
) -> dict[tuple[str, int], Packed]:
    """Round linears to their widths; what comes after sees the last width of each."""
    require_groups(linear_columns(staged), group_size)
    found: dict[tuple[str, int], Packed] = {}

    def visit(path: str, moments: Moments | None) -> Tensor:
        weight = staged.originals[path].to(staged.placement.device)
        for bits in widths[path]:
            found[path, bits] = rounding.round(weight, Width(bits, group_size), moments)
        return found[path, widths[path][-1]].dequantize(staged.compute_dtype)

    if rounding.needs_hessian:
        walk(staged, require_text(rounding.name, windows), visit)
        return found
    with progress(f"rounding ({rounding.name})", len(widths), "linears") as advance:
        for path in widths:
            visit(path, None)
            advance()
    return found


def require_text(rounding: str, windows: Tensor | None) -> Tensor:
    """The windows, or a refusal.

    Raises:
        InputError: there are none.
    """
    if windows is None:
        raise InputError(f"--rounding {rounding}: needs calibration text", "give its windows, or round with nearest")
    return windows


@contextmanager
def in_place(staged: StagedModel, rounded: Mapping[str, Packed]) -> Iterator[None]:
    """The model with a plan's weights, by module path; with the checkpoint's own again afterwards."""
    try:
        for path, item in rounded.items():
            weight = item.dequantize(staged.compute_dtype).to(staged.placement.device)
            staged.model.get_submodule(path).weight.data = weight
        yield
    finally:
        staged.restore()


def bank_of(staged: StagedModel, players: tuple[Player, ...], rounded: Mapping[tuple[str, int], Packed]) -> WeightBank:
    """Decode rounded weights into the compute dtype, ready to be swapped."""
    device, dtype = staged.placement.device, staged.compute_dtype
    return WeightBank(staged, players, {key: item.dequantize(dtype).to(device) for key, item in rounded.items()})


def player_bytes(staged: StagedModel, player: Player, rounding: Rounding, bits: int, group_size: int) -> int:
    """Bytes of a player's saved tensors at a width."""
    total = 0
    for linear in player.linears:
        weight = staged.originals[staged.layout.path(player.block, linear)]
        rows, columns = weight.shape
        total += shape_bytes(rounding.shapes(rows, columns, Width(bits, group_size), weight.dtype))
    return total


def player_parameters(staged: StagedModel, player: Player) -> int:
    """Number of weights of a player."""
    return sum(staged.originals[staged.layout.path(player.block, linear)].numel() for linear in player.linears)
