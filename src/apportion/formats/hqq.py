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

from apportion.core.errors import InputError, require_package
from apportion.formats.format import Format
from apportion.formats.packed import Packed, Shapes
from apportion.formats.width import BITS, Width

PER_WORD = {2: 4, 3: 10, 4: 2, 8: 1}


@dataclass(frozen=True, slots=True)
class HqqWeight:
    """Packed codes, and per group a scale and a zero; the weight is `(code - zero) * scale`."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    shape: tuple[int, int]
    width: Width

    def meta(self, dtype: torch.dtype) -> dict[str, Any]:
        """What hqq must know to decode in a dtype."""
        from hqq.core.quantize import Quantizer

        packing = Quantizer.bit_to_packing[self.width.code_bits]
        return {
            "nbits": self.width.code_bits,
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


class HqqFormat:
    """The format of `hqq`."""

    name: str = "hqq"
    bits: tuple[int, ...] = BITS
    servers: tuple[str, ...] = ("apportion.load", "hqq")

    def shapes(self, width: Width, rows: int, columns: int, dtype: torch.dtype) -> Shapes:
        """Codes packed along the groups, a scale and a zero for each group."""
        groups, per_word = rows * columns // width.group_size, PER_WORD[width.code_bits]
        if width.bits != 3 and groups % per_word:
            raise InputError(
                f"--rounding hqq: packs {per_word} groups together at {width.bits} bit, and a weight of "
                f"{rows} x {columns} has {groups} groups of {width.group_size}",
                f"choose a --group-size that gives a multiple of {per_word}, or another rounding",
            )
        words = -(-groups // per_word)
        return {
            "W_q": (torch.int32 if width.bits == 3 else torch.uint8, (words, width.group_size)),
            "scale": (dtype, (groups, 1)),
            "zero": (dtype, (groups, 1)),
        }

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], width: Width) -> Packed:
        require_package("hqq.core.quantize", "hqq", "hqq")
        return HqqWeight(tensors["W_q"], tensors["scale"], tensors["zero"], shape, width)


HQQ: Format = HqqFormat()
