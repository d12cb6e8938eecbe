"""What every rounding algorithm is, and what it returns."""

import math
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.formats import Width
from apportion.bits.rounding.moments import Moments

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of saved tensors, by suffix of the linear's path."""


def shape_bytes(shapes: Shapes) -> int:
    """Bytes of the tensors."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes.values())


@runtime_checkable
class Rounded(Protocol):
    """One linear's weight at one width."""

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """The weight that the saved tensors decode to when loaded in this dtype."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """What is saved, by suffix of the linear's path (`weight_packed`, for example)."""
        ...


@runtime_checkable
class Rounding(Protocol):
    """An algorithm that rounds one weight to one width.

    Attributes:
        name: as in `--rounding`.
        bits: the widths that it has.
        format: the checkpoint format that its codes are saved in.
        needs_hessian: whether `round` needs the moments of the linear's inputs (others ignore them).
    """

    name: ClassVar[str]
    bits: ClassVar[tuple[int, ...]]
    format: ClassVar[str]
    needs_hessian: ClassVar[bool]

    def round(
        self,
        weight: Float[Tensor, "rows columns"],
        width: Width,
        moments: Moments | None,
    ) -> Rounded:
        """Round a weight in its checkpoint dtype."""
        ...

    def shapes(self, rows: int, columns: int, width: Width, dtype: torch.dtype) -> Shapes:
        """What `Rounded.tensors()` will hold for a weight of this shape and dtype, known before rounding.

        Raises:
            InputError: the format cannot hold this shape.
        """
        ...
