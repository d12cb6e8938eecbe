"""HQQ's rounding through the hqq library's own quantizer, packing and decoding.

Asymmetric, groups along the input (axis 1), one scale and one float zero per group, found by half-quadratic
optimisation without data. Codes are packed along the groups: 8, 4 and 2 bit into bytes, 3 bit ten to an int32.
Scale and zero are kept in the checkpoint's dtype, as HQQLinear keeps them in its compute dtype.

What is saved are these three tensors. The library's own files are pickles, and its own decoder of safetensors
evaluates dtype names as Python; neither is used.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.rounding.moments import Moments
from apportion.core.errors import InputError, MissingExtraError
from apportion.formats.hqq import HqqWeight
from apportion.formats.packed import Shapes
from apportion.formats.width import Width

PER_WORD = {2: 4, 3: 10, 4: 2, 8: 1}


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
