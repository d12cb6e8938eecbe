"""HQQ's rounding through the hqq library's own quantizer, packing and decoding.

Asymmetric, groups along the input (axis 1), one scale and one float zero per group, found by half-quadratic
optimisation without data. Codes are packed along the groups: 8, 4 and 2 bit into bytes, 3 bit ten to an int32.
Scale and zero are kept in the checkpoint's dtype, as HQQLinear keeps them in its compute dtype.

What is saved are these three tensors. The library's own files are pickles, and its own decoder of safetensors
evaluates dtype names as Python; neither is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.formats import Width
from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.protocol import Shapes
from apportion.core.errors import InputError, MissingExtraError

PER_WORD = {2: 4, 3: 10, 4: 2, 8: 1}


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


class Hqq:
    """`--rounding hqq`."""

    name: ClassVar[str] = "hqq"
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    format: ClassVar[str] = "hqq"
    needs_hessian: ClassVar[bool] = False

    def __init__(self) -> None:
        try:
            import hqq.core.quantize  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("hqq", "hqq") from error

    def round(self, weight: Float[Tensor, "rows columns"], width: Width, moments: Moments | None = None) -> HqqWeight:
        from hqq.core.quantize import Quantizer

        rows, columns = weight.shape
        self.shapes(rows, columns, width, weight.dtype)
        codes, meta = Quantizer.quantize(
            weight, nbits=width.bits, group_size=width.group_size, axis=1, device=str(weight.device)
        )
        scale, zero = (meta[key].to(weight.dtype).contiguous() for key in ("scale", "zero"))
        return HqqWeight(codes.contiguous(), scale, zero, (rows, columns), width)

    def shapes(self, rows: int, columns: int, width: Width, dtype: torch.dtype) -> Shapes:
        groups, per_word = rows * columns // width.group_size, PER_WORD[width.bits]
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
