"""Quanto's rounding through optimum-quanto's own functions (the backend on which the paper runs SPQE).

Asymmetric, one scale and one float shift per group, by minimum and maximum. The group size is explicit here;
quanto itself chooses one silently in its QLinear and does not save it, so ours is in the checkpoint's manifest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.formats import Width
from apportion.bits.rounding.moments import Moments
from apportion.core.errors import MissingExtraError


@dataclass(frozen=True, slots=True)
class QuantoWeight:
    """A quanto weight tensor."""

    packed: Any
    width: Width

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        out: Tensor = self.packed.dequantize()
        return out.to(dtype)

    def tensors(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        self.packed.save_to_state_dict(found, "weight.", keep_vars=False)
        return found


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

        qtype = {2: qint2, 4: qint4}[width.bits]
        weight = weight.contiguous()
        scale, shift = MaxOptimizer()(weight, qtype=qtype, axis=0, group_size=width.group_size)
        packed = quantize_weight(weight, qtype, 0, scale, shift, group_size=width.group_size, optimized=False)
        return QuantoWeight(packed, width)

    def nbytes(self, rows: int, columns: int, width: Width, dtype: torch.dtype) -> int:
        """Codes in bytes, and a scale and a shift in the checkpoint's dtype for each group."""
        groups = rows * columns // width.group_size
        return rows * columns * width.bits // 8 + 2 * groups * dtype.itemsize
