"""What every rounding algorithm is."""

from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.rounding.moments import Moments
from apportion.formats.packed import Packed, Shapes
from apportion.formats.width import Width


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
    ) -> Packed:
        """Round a weight in its checkpoint dtype."""
        ...

    def shapes(self, rows: int, columns: int, width: Width, dtype: torch.dtype) -> Shapes:
        """What `Packed.tensors()` will hold for a weight of this shape and dtype, known before rounding.

        Raises:
            InputError: the format cannot hold this shape.
        """
        ...
