"""The two loops over the columns of a block that gptq cannot avoid, and where each runs.

Both go column by column, every row on its own: `feed_back` rounds a column and feeds its error into the columns to
its right, `settle` moves each code to the best one while all others stay (coordinate descent). Written as torch
operations a column is about eight launches, and a GPU waits for launches: 4,096 columns of one linear took seconds
that way. There `kernels` does a block of columns in one launch, with the same arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.core.launch import has_kernels
from apportion.formats import Width

BLOCK = 128  # columns of one launch; the columns outside are updated by one matrix product
FeedBack = Callable[[Tensor, Tensor, Tensor, Width], tuple[Tensor, Tensor]]
Settle = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Width], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Loops:
    """The loops as one device runs them, see `feed_back` and `settle`."""

    feed_back: FeedBack
    settle: Settle


def loops_for(device: torch.device) -> Loops:
    """One launch a block where there are CUDA and Triton (which comes with torch), else operation by operation."""
    return fused() if has_kernels(device) else Loops(feed_back, settle)


@cache
def fused() -> Loops:
    from apportion.bits.rounding import kernels

    return Loops(kernels.feed_back, kernels.settle)


def nonzero(scales: Tensor) -> Tensor:
    """Scales to divide by: a zero scale decodes every code to zero, so any divisor will do."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def feed_back(
    work: Float[Tensor, "rows block"],
    scales: Float[Tensor, "rows block"],
    factor: Float[Tensor, "block block"],
    width: Width,
) -> tuple[Float[Tensor, "rows block"], Float[Tensor, "rows block"]]:
    """GPTQ's loop over one block of columns.

    Args:
        work: the target, with the errors of earlier blocks fed in.
        scales: each column's scale in each row.
        factor: the block of the upper Cholesky factor of the inverse Hessian.

    Returns:
        Codes, and errors as later columns need them (divided by the factor's diagonal).
    """
    left, scales = upright(work), upright(scales)
    divisor = nonzero(scales)
    codes, errors = torch.empty_like(left), torch.empty_like(left)
    for column in range(len(left)):
        code = (left[column] / divisor[column]).round_().clamp_(width.lowest, width.highest)
        error = (left[column] - code * scales[column]).div_(factor[column, column])
        left[column:].addr_(factor[column, column:], error, alpha=-1)
        codes[column], errors[column] = code, error
    return codes.T, errors.T


def upright(part: Float[Tensor, "rows block"]) -> Float[Tensor, "block rows"]:
    """A copy in which each column lies in one piece: on a CPU the loops take half the time."""
    return part.T.clone(memory_format=torch.contiguous_format)


def settle(
    codes: Float[Tensor, "rows block"],
    scales: Float[Tensor, "rows block"],
    slope: Float[Tensor, "rows block"],
    inside: Float[Tensor, "block block"],
    curvature: Float[Tensor, " block"],
    width: Width,
) -> tuple[Float[Tensor, "rows block"], Float[Tensor, "rows block"]]:
    """One pass of coordinate descent over one block of columns.

    Args:
        slope: half of the negative gradient of each row's error, see `refine`.
        inside: the block of the Hessian; curvature: its diagonal, above zero.

    Returns:
        Codes, and by how much each weight moved.
    """
    codes, slope, scales = upright(codes), upright(slope), upright(scales)
    divisor = curvature[:, None] * nonzero(scales)
    moved = torch.empty_like(slope)
    for column in range(len(slope)):
        best = torch.addcdiv(codes[column], slope[column], divisor[column])
        best.round_().clamp_(width.lowest, width.highest)
        step = (best - codes[column]).mul_(scales[column])
        slope.addr_(inside[column], step, alpha=-1)
        codes[column], moved[column] = best, step
    return codes.T, moved.T
