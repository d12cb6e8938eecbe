"""HQQ's rounding through the hqq library's own quantizer, packing and decoding.

Asymmetric, groups along the input (axis 1), one scale and one float zero per group, found by half-quadratic
optimisation without data. Scale and zero are kept in the checkpoint's dtype, as HQQLinear keeps them in its compute
dtype.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from apportion.bits.rounding.moments import Moments
from apportion.core.errors import require_package
from apportion.formats import HQQ, Format, HqqWeight, Width


class Hqq:
    """`--rounding hqq`."""

    name: ClassVar[str] = "hqq"
    format: ClassVar[Format] = HQQ
    needs_hessian: ClassVar[bool] = False

    def __init__(self) -> None:
        require_package("hqq.core.quantize", "hqq", "hqq")

    def round(self, weight: Float[Tensor, "rows columns"], width: Width, moments: Moments | None = None) -> HqqWeight:
        from hqq.core.quantize import Quantizer

        rows, columns = weight.shape
        self.format.shapes(width, rows, columns, weight.dtype)  # refuses what it cannot hold
        codes, meta = Quantizer.quantize(
            weight, nbits=width.code_bits, group_size=width.group_size, axis=1, device=str(weight.device)
        )
        scale, zero = (meta[key].to(weight.dtype).contiguous() for key in ("scale", "zero"))
        return HqqWeight(codes.contiguous(), scale, zero, (rows, columns), width)
