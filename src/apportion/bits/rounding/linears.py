"""Round many linears: each to every width of a list, or each to its own width in a plan's sequence."""

from collections.abc import Mapping

from jaxtyping import Int
from torch import Tensor

from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.protocol import Rounding
from apportion.bits.rounding.sequential import walk
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.formats import Packed, Width
from apportion.models.staged import StagedModel

Windows = Int[Tensor, "windows tokens"]


def round_all(
    staged: StagedModel, rounding: Rounding, widths: tuple[Width, ...], windows: Windows | None = None
) -> dict[tuple[str, Width], Packed]:
    """Round every linear of every block to every width, each from the checkpoint's own weight.

    Args:
        widths: rising.
        windows: text for roundings that need moments of the inputs. A bank serves plans of all widths, so its
            moments are taken where everything before is at the highest width; `round_plan` takes a plan's own.
    """
    return round_linears(staged, rounding, dict.fromkeys(staged.originals, widths), windows)


def round_plan(
    staged: StagedModel, rounding: Rounding, widths: Mapping[str, Width], windows: Windows | None = None
) -> dict[str, Packed]:
    """Round every linear to its own width, in sequence: each sees what the plan made of the ones before it.

    Args:
        widths: of every linear, by module path.
        windows: text for roundings that need moments of the inputs.
    """
    found = round_linears(staged, rounding, {path: (own,) for path, own in widths.items()}, windows)
    return {path: packed for (path, _), packed in found.items()}


def round_linears(
    staged: StagedModel, rounding: Rounding, widths: Mapping[str, tuple[Width, ...]], windows: Windows | None
) -> dict[tuple[str, Width], Packed]:
    """Round linears to their widths; what comes after sees the last width of each.

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
