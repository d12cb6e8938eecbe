"""Quanto's rounding through optimum-quanto's own functions (the backend on which the paper runs SPQE).

Asymmetric, one scale and one float shift per group, by minimum and maximum. The group size is explicit here;
quanto itself chooses one silently in its QLinear and does not save it, so ours is in the checkpoint's manifest.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.rounding.moments import Moments
from apportion.core.errors import InputError, MissingExtraError
from apportion.formats.packed import Shapes
from apportion.formats.quanto import QuantoWeight
from apportion.formats.width import Width


class Quanto:
    """`--rounding quanto`."""

    name: ClassVar[str] = "quanto"
    bits: ClassVar[tuple[int, ...]] = (2, 4)
    format: ClassVar[str] = "quanto"
    needs_hessian: ClassVar[bool] = False

    def __init__(self) -> None:
        try:
            import optimum.quanto  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("optimum-quanto", "quanto") from error

    def round(
        self,
        weight: Float[Tensor, "rows columns"],
        width: Width,
        moments: Moments | None = None,
    ) -> QuantoWeight:
        from optimum.quanto import MaxOptimizer, qint2, qint4
        from optimum.quanto.tensor.weights import quantize_weight

        self.shapes(weight.shape[0], weight.shape[1], width, weight.dtype)
        qtype = {2: qint2, 4: qint4}[width.bits]
        weight = weight.contiguous()
        scale, shift = MaxOptimizer()(weight, qtype=qtype, axis=0, group_size=width.group_size)
        packed = quantize_weight(weight, qtype, 0, scale, shift, group_size=width.group_size, optimized=False)
        return QuantoWeight(packed, width)

    def shapes(self, rows: int, columns: int, width: Width, dtype: torch.dtype) -> Shapes:
        """Codes packed along the groups into bytes, and a scale and a shift for each group."""
        groups = rows * columns // width.group_size
        if groups < 2:
            raise InputError(
                f"--rounding quanto: cannot hold a weight of {rows} x {columns} in a single group",
                "choose a smaller --group-size or another rounding",
            )
        return {
            "weight._data._data": (torch.uint8, (-(-groups * width.bits // 8), width.group_size)),
            "weight._scale": (dtype, (groups, 1)),
            "weight._shift": (dtype, (groups, 1)),
        }
