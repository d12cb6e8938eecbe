"""HQQ's packed weight: codes packed along the groups (8, 4 and 2 bit into bytes, 3 bit ten to an int32), and per group
a scale and a float zero.

What is saved are these three tensors. The library's own files are pickles, and its own decoder of safetensors
evaluates dtype names as Python; neither is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.formats.width import Width


@dataclass(frozen=True, slots=True)
class HqqWeight:
    """Packed codes, and per group a scale and a zero; the weight is `(code - zero) * scale`."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    shape: tuple[int, int]
    width: Width

    @classmethod
    def from_tensors(cls, saved: Mapping[str, Tensor], shape: tuple[int, int], width: Width) -> "HqqWeight":
        """Read back what `tensors` gave."""
        return cls(saved["W_q"], saved["scale"], saved["zero"], shape, width)

    def meta(self, dtype: torch.dtype) -> dict[str, Any]:
        """What hqq must know to decode in a dtype."""
        from hqq.core.quantize import Quantizer

        packing = Quantizer.bit_to_packing[self.width.bits]
        return {
            "nbits": self.width.bits,
            "group_size": self.width.group_size,
            "shape": torch.Size(self.shape),
            "scale": self.scale.to(dtype),
            "zero": self.zero.to(dtype),
            "axis": 1,
            "packing": packing,
            "unpack_view_dtype": Quantizer.unpack_view_dtype[packing],
            "view_as_float": False,
            "quant_scale": False,
            "quant_zero": False,
            "compute_dtype": dtype,
        }

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        from hqq.core.quantize import Quantizer

        found: Tensor = Quantizer.dequantize(self.codes, self.meta(dtype))
        return found

    def tensors(self) -> Mapping[str, Tensor]:
        return {"W_q": self.codes.cpu(), "scale": self.scale.cpu(), "zero": self.zero.cpu()}
