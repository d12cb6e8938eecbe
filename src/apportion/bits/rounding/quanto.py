"""Quanto's rounding through optimum-quanto's own functions (the backend on which the paper runs SPQE).

Asymmetric, one scale and one float shift per group, by minimum and maximum.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from apportion.bits.rounding.moments import Moments
from apportion.core.errors import require_package
from apportion.formats import QUANTO, Format, QuantoWeight, Width


class Quanto:
    """`--rounding quanto`."""

    name: ClassVar[str] = "quanto"
    format: ClassVar[Format] = QUANTO
    needs_hessian: ClassVar[bool] = False

    def __init__(self) -> None:
        require_package("optimum.quanto", "optimum-quanto", "quanto")

    def round(
        self,
        weight: Float[Tensor, "rows columns"],
        width: Width,
        moments: Moments | None = None,
    ) -> QuantoWeight:
        from optimum.quanto import MaxOptimizer, qint2, qint4
        from optimum.quanto.tensor.weights import quantize_weight

        self.format.shapes(width, weight.shape[0], weight.shape[1], weight.dtype)  # refuses what it cannot hold
        qtype = {2: qint2, 4: qint4}[width.code_bits]
        weight = weight.contiguous()
        scale, shift = MaxOptimizer()(weight, qtype=qtype, axis=0, group_size=width.group_size)
        packed = quantize_weight(weight, qtype, 0, scale, shift, group_size=width.group_size, optimized=False)
        return QuantoWeight(packed, width)
