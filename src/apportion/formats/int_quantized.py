"""Compressed-tensors `int-quantized`: 8-bit codes under the name of the weight itself.

    weight         int8 [rows, columns]            codes
    weight_scale   dtype [rows, columns / group]   one scale per group, its sign free

For embeddings. Transformers (5.23) asks an embedding for its `weight` while it loads, and ties a head to it by that
name: a packed embedding, which has none, does not load, and one in this layout does, tied or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.formats.compressed_tensors import GridWeight
from apportion.formats.format import Format
from apportion.formats.packed import Packed, Shapes
from apportion.formats.width import Width


@dataclass(frozen=True, slots=True)
class IntWeight:
    """A grid weight of eight bits whose codes are saved one in a byte."""

    grid: GridWeight

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """As compressed-tensors decodes it when a model is loaded in `dtype`."""
        return self.grid.dequantize(dtype)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"weight": self.grid.codes.cpu(), "weight_scale": self.grid.scale.cpu().contiguous()}


class IntQuantized:
    """The layout of embeddings at eight bits."""

    name: str = "int-quantized"
    bits: tuple[int, ...] = (8,)
    servers: tuple[str, ...] = ("transformers",)

    def shapes(self, width: Width, rows: int, columns: int, dtype: torch.dtype) -> Shapes:
        return {"weight": (torch.int8, (rows, columns)), "weight_scale": (dtype, (rows, columns // width.group_size))}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], width: Width) -> Packed:
        assert tuple(tensors["weight"].shape) == shape, "codes of another shape"
        return IntWeight(GridWeight.of(tensors["weight"], tensors["weight_scale"], width))


INT_QUANTIZED: Format = IntQuantized()
