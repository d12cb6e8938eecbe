"""Codes and scales on the grid of compressed-tensors `pack-quantized`, symmetric."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from apportion.formats.packed import Shapes
from apportion.formats.width import Width

FORMAT = "compressed-tensors"


@dataclass(frozen=True, slots=True)
class GridWeight:
    """Signed codes and one scale per group; the weight is `codes * scale`. `evidence` says how they were found."""

    codes: Int8[Tensor, "rows columns"]
    scale: Float[Tensor, "rows groups"]
    width: Width
    evidence: Mapping[str, float] = field(default_factory=dict)

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """As compressed-tensors decodes it when a model is loaded in `dtype`."""
        rows, groups = self.scale.shape
        grouped = self.codes.view(rows, groups, -1).to(dtype) * self.scale.to(dtype)[..., None]
        return grouped.view(rows, -1)

    def tensors(self) -> Mapping[str, Tensor]:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        return {
            "weight_packed": pack_to_int32(self.codes.cpu(), self.width.bits),
            "weight_scale": self.scale.cpu().contiguous(),
            "weight_shape": torch.tensor(self.codes.shape, dtype=torch.int64),
        }


def grid_shapes(rows: int, columns: int, width: Width, dtype: torch.dtype) -> Shapes:
    """Of `GridWeight.tensors()`; scales are stored in the checkpoint's dtype."""
    return {
        "weight_packed": (torch.int32, (rows, -(-columns * width.bits // 32))),
        "weight_scale": (dtype, (rows, columns // width.group_size)),
        "weight_shape": (torch.int64, (2,)),
    }


def encode(
    grouped: Float[Tensor, "rows groups size"], scale: Float[Tensor, "rows groups"], width: Width
) -> Float[Tensor, "rows groups size"]:
    """Nearest codes for given scales, as floats; a zero scale gives zero codes."""
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)[..., None]
    return (grouped / divisor).round_().clamp_(width.lowest, width.highest)
