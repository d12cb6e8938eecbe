"""What every format of quantized weights is: exact shapes before there are weights, and weights from saved tensors."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from apportion.formats.packed import Packed, Shapes
from apportion.formats.width import Width


@runtime_checkable
class Format(Protocol):
    """A way to store matrices of several widths.

    Attributes:
        name: as in a checkpoint's `quant_method`.
        bits: the code bits that it has.
        servers: who loads it.
    """

    name: str
    bits: tuple[int, ...]
    servers: tuple[str, ...]

    def shapes(self, width: Width, rows: int, columns: int, dtype: torch.dtype) -> Shapes:
        """Tensors of a matrix at a width, known before rounding.

        Args:
            dtype: of the checkpoint, in which scales are stored.

        Raises:
            InputError: the format cannot hold this shape.
        """
        ...

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], width: Width) -> Packed:
        """The weight whose `tensors()` were saved.

        Raises:
            MissingExtraError: the format's package is not installed.
        """
        ...
