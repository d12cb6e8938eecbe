"""Round many linears: each to every width of a list, or each to its own width in a plan's sequence."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from apportion.bits.rounding.kept import Kept, packed_from, packed_tensors
from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.protocol import Rounding
from apportion.bits.rounding.sequential import walk
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.formats import Packed, Width
from apportion.models.staged import StagedModel
from apportion.models.text import Windows

Tokens = Int[Tensor, "windows tokens"]


def round_all(
    staged: StagedModel, rounding: Rounding, widths: tuple[Width, ...], windows: Tokens | None = None
) -> dict[tuple[str, Width], Packed]:
    """Round every linear of every block to every width, each from the checkpoint's own weight.

    Args:
        widths: rising.
        windows: text for roundings that need moments of the inputs. A bank serves plans of all widths, so its
            moments are taken where everything before is at the highest width; `round_plan` takes a plan's own.
    """
    return round_linears(staged, rounding, dict.fromkeys(staged.originals, widths), windows)


def round_plan(
    staged: StagedModel,
    rounding: Rounding,
    widths: Mapping[str, Width],
    windows: Tokens | None = None,
    folder: Path | None = None,
) -> dict[str, Packed]:
    """Round every linear to its own width, in sequence: each sees what the plan made of the ones before it.

    Args:
        widths: of every linear, by module path.
        windows: text for roundings that need moments of the inputs.
        folder: where those keep each block as it is done; a run that was killed goes on after the last one, and ends
            with the very same weights.
    """
    jobs = {path: (own,) for path, own in widths.items()}
    if folder is None or windows is None or not rounding.needs_hessian:
        found = round_linears(staged, rounding, jobs, windows)
    else:
        kept = Kept(folder, depends(staged, rounding, widths, windows))
        found = round_linears(staged, rounding, jobs, windows, kept)
    return {path: packed for (path, _), packed in found.items()}


def depends(staged: StagedModel, rounding: Rounding, widths: Mapping[str, Width], windows: Tokens) -> dict[str, object]:
    """Everything that weights rounded in sequence depend on."""
    return {
        "model": staged.digest,
        "placement": [staged.placement.device.split(":")[0], staged.placement.dtype],
        "rounding": [rounding.name, repr(rounding)],
        "widths": {path: width.name for path, width in widths.items()},
        "windows": Windows(windows, "").digest,
    }


def round_linears(
    staged: StagedModel,
    rounding: Rounding,
    widths: Mapping[str, tuple[Width, ...]],
    windows: Tokens | None,
    kept: Kept | None = None,
) -> dict[tuple[str, Width], Packed]:
    """Round linears to their widths; what comes after sees the last width of each.

    Args:
        kept: finished blocks of an earlier run, and of this one as they come; for one width a linear.

    Raises:
        InputError: a rounding that needs moments was given no text.
    """
    found: dict[tuple[str, Width], Packed] = {}

    def visit(path: str, moments: Moments | None) -> Tensor:
        weight = staged.originals[path].to(staged.placement.device)
        for width in widths[path]:
            found[path, width] = rounding.round(weight, width, moments)
        return found[path, widths[path][-1]].dequantize(staged.compute_dtype)

    if rounding.needs_hessian:
        pieces = None if kept is None else KeptBlocks(staged, rounding, widths, found, kept)
        walk(staged, require_text(rounding.name, windows), visit, pieces=pieces)
        return found
    with progress(f"rounding ({rounding.name})", len(widths), "linears") as advance:
        for path in widths:
            visit(path, None)
            advance()
    return found


class KeptBlocks:
    """`sequential.Pieces`: blocks whose rounding is finished, on disk.

    Args:
        found: where loaded weights go, and where those to be kept lie.
    """

    def __init__(
        self,
        staged: StagedModel,
        rounding: Rounding,
        widths: Mapping[str, tuple[Width, ...]],
        found: dict[tuple[str, Width], Packed],
        kept: Kept,
    ) -> None:
        self.staged, self.form, self.widths, self.found, self.kept = staged, rounding.format, widths, found, kept

    def paths(self, block: int) -> list[str]:
        """Module paths of a block's linears."""
        return [self.staged.layout.path(block, name) for name in self.staged.layout.linears[block]]

    def load(self, block: int) -> dict[str, Tensor] | None:
        """A finished block's weights by module path, or None."""
        piece = self.kept.load(f"block-{block}")
        if piece is None:
            return None
        paths = self.paths(block)
        widths = {path: self.widths[path][-1] for path in paths}
        shapes = {path: (self.staged.originals[path].shape[0], self.staged.originals[path].shape[1]) for path in paths}
        packed = packed_from(piece[0], self.form, shapes, widths)
        self.found |= {(path, widths[path]): item for path, item in packed.items()}
        return {path: item.dequantize(self.staged.compute_dtype) for path, item in packed.items()}

    def save(self, block: int) -> None:
        """Keep a block that was just finished."""
        own = {path: self.found[path, self.widths[path][-1]] for path in self.paths(block)}
        self.kept.save(f"block-{block}", packed_tensors(own))


def require_text(rounding: str, windows: Tensor | None) -> Tensor:
    """The windows, or a refusal.

    Raises:
        InputError: there are none.
    """
    if windows is None:
        raise InputError(f"--rounding {rounding}: needs calibration text", "give its windows, or round with nearest")
    return windows
