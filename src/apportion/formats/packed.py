"""What a stored weight is: named tensors that decode to a matrix, and what those tensors will be before they exist."""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of saved tensors, by suffix of the linear's path."""


def shape_bytes(shapes: Shapes) -> int:
    """Bytes of the tensors."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes.values())


@runtime_checkable
class Packed(Protocol):
    """One matrix at one width."""

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """The weight that the saved tensors decode to when loaded in this dtype."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """What is saved, by suffix of the linear's path (`weight_packed`, for example)."""
        ...
