"""Compressed-tensors `pack-quantized`, symmetric: the one format that stock transformers loads, and vLLM's source has.

    weight_packed  int32 [rows, ceil(columns * bits / 32)]   codes, 32 of them in `bits` words, none wasted
    weight_scale   dtype [rows, columns / group]             one scale per group, its sign free
    weight_shape   int64 [2]                                 rows, columns

In memory codes of up to four bits lie two in a byte, so that many widths of a large model fit:

    [0, 1, -2, 1]  ->  nibbles 0x10, 0x1e    the even column in the low half
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from apportion.formats.format import Format
from apportion.formats.packed import Packed, Shapes
from apportion.formats.width import BITS, Width


@dataclass(frozen=True, slots=True)
class GridWeight:
    """Signed codes and one scale per group; the weight is `codes * scale`. `evidence` says how they were found.

    Attributes:
        stored: the codes as they lie in memory: uint8 [rows, columns / 2], or int8 [rows, columns] of wider codes and
            of an odd number of columns.
    """

    stored: Tensor
    scale: Float[Tensor, "rows groups"]
    width: Width
    evidence: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        codes: Int8[Tensor, "rows columns"],
        scale: Float[Tensor, "rows groups"],
        width: Width,
        evidence: Mapping[str, float] | None = None,
    ) -> "GridWeight":
        """The weight of these codes."""
        small = width.bits <= 4 and codes.shape[1] % 2 == 0
        return cls(nibbles(codes) if small else codes, scale, width, evidence or {})

    @property
    def codes(self) -> Int8[Tensor, "rows columns"]:
        """The signed codes."""
        return from_nibbles(self.stored) if self.stored.dtype == torch.uint8 else self.stored

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.stored.shape
        return rows, columns * (2 if self.stored.dtype == torch.uint8 else 1)

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """As compressed-tensors decodes it when a model is loaded in `dtype`."""
        rows, groups = self.scale.shape
        grouped = self.codes.view(rows, groups, -1).to(dtype) * self.scale.to(dtype)[..., None]
        return grouped.view(rows, -1)

    def tensors(self) -> Mapping[str, Tensor]:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        codes = self.codes.cpu()
        return {
            "weight_packed": pack_to_int32(codes, self.width.code_bits),
            "weight_scale": self.scale.cpu().contiguous(),
            "weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
        }


def nibbles(codes: Int8[Tensor, "rows columns"]) -> Tensor:
    """Codes from -8 to 7, two in a byte.

    >>> nibbles(torch.tensor([[0, 1, -2, 1]], dtype=torch.int8)).tolist()
    [[16, 30]]
    """
    return ((codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)).view(torch.uint8)


def from_nibbles(stored: Tensor) -> Int8[Tensor, "rows columns"]:
    """What `nibbles` packed.

    >>> from_nibbles(torch.tensor([[16, 30]], dtype=torch.uint8)).tolist()
    [[0, 1, -2, 1]]
    """
    signed = stored.view(torch.int8)
    return torch.stack([(signed << 4) >> 4, signed >> 4], dim=-1).view(stored.shape[0], -1)


class CompressedTensors:
    """The format of `nearest` and `gptq`."""

    name: str = "compressed-tensors"
    bits: tuple[int, ...] = BITS
    servers: tuple[str, ...] = ("transformers", "vLLM (2, 3, 8 bit: CUDA only)")

    def shapes(self, width: Width, rows: int, columns: int, dtype: torch.dtype) -> Shapes:
        return {
            "weight_packed": (torch.int32, (rows, -(-columns * width.code_bits // 32))),
            "weight_scale": (dtype, (rows, columns // width.group_size)),
            "weight_shape": (torch.int64, (2,)),
        }

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], width: Width) -> Packed:
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        codes = unpack_from_int32(tensors["weight_packed"], width.code_bits, torch.Size(shape))
        return GridWeight.of(codes, tensors["weight_scale"], width)


COMPRESSED_TENSORS: Format = CompressedTensors()
