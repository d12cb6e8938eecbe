"""What every rounding algorithm is."""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from apportion.bits.rounding.moments import Moments
from apportion.formats import Format, Packed, Width


@runtime_checkable
class Rounding(Protocol):
    """An algorithm that rounds one weight to one width.

    Attributes:
        name: as in `--rounding`.
        format: how its codes are stored, in which widths.
        needs_hessian: whether `round` needs the moments of the linear's inputs (others ignore them).
    """

    name: ClassVar[str]
    format: ClassVar[Format]
    needs_hessian: ClassVar[bool]

    def round(
        self,
        weight: Float[Tensor, "rows columns"],
        width: Width,
        moments: Moments | None,
    ) -> Packed:
        """Round a weight in its checkpoint dtype."""
        ...
