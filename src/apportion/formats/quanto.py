"""Quanto's packed weight: codes, and per group one scale and one float shift.

The group size is explicit here; quanto itself chooses one silently in its QLinear and does not save it, so ours is in
the checkpoint's configuration.
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
from apportion.formats.width import Width


@dataclass(frozen=True, slots=True)
class QuantoWeight:
    """A quanto weight tensor."""

    packed: Any
    width: Width

    def cast(self, dtype: torch.dtype) -> Any:
        """The same codes with scale and shift in a dtype: quanto computes in the dtype of its scale."""
        from optimum.quanto import WeightQBitsTensor

        own = self.packed
        return WeightQBitsTensor(
            own.qtype, own.axis, self.width.group_size, own.size(), own.stride(), own._data,
            own._scale.to(dtype), own._shift.to(dtype),
        )  # fmt: skip

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """As quanto decodes, to the bit, by plain operations.

        Its own kernel for CUDA runs on the default stream, whatever the current one is: what it decodes while a graph
        is recorded is read before it is there.
        """
        own = self.packed
        held, (rows, columns) = own._data, own.size()
        codes = unpacked(held._data, self.width.code_bits)[: len(held)]
        found: Tensor = own._scale.to(dtype) * codes - own._shift.to(dtype)
        return found.view(rows, columns)

    def tensors(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        self.packed.save_to_state_dict(found, "weight.", keep_vars=False)
        return found


def unpacked(held: Tensor, bits: int) -> Tensor:
    """Codes of bytes that hold several: the first rows in their lowest bits, the next ones above them.

    >>> unpacked(torch.tensor([[0b0010_0001], [0b0100_0011]], dtype=torch.uint8), 4).flatten().tolist()
    [1, 3, 2, 4]
    """
    return torch.cat([held >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)])


class QuantoFormat:
    """The format of `quanto`."""

    name: str = "quanto"
    bits: tuple[int, ...] = (2, 4)
    servers: tuple[str, ...] = ("apportion.load", "optimum-quanto")

    def shapes(self, width: Width, rows: int, columns: int, dtype: torch.dtype) -> Shapes:
        """Codes packed along the groups into bytes, and a scale and a shift for each group."""
        groups = rows * columns // width.group_size
        if groups < 2:
            raise InputError(
                f"--rounding quanto: cannot hold a weight of {rows} x {columns} in a single group",
                "choose a smaller --group-size or another rounding",
            )
        return {
            "weight._data._data": (torch.uint8, (-(-groups * width.code_bits // 8), width.group_size)),
            "weight._scale": (dtype, (groups, 1)),
            "weight._shift": (dtype, (groups, 1)),
        }

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], width: Width) -> Packed:
        """The group size is ours to restore, quanto would guess it."""
        require_package("optimum.quanto", "optimum-quanto", "quanto")
        from optimum.quanto import WeightQBitsTensor, qint2, qint4

        qtype = {2: qint2, 4: qint4}[width.code_bits]
        packed = WeightQBitsTensor.load_from_state_dict(
            dict(tensors), "weight.", qtype, 0, width.group_size, torch.Size(shape), (shape[1], 1), missing_keys=[]
        )
        return QuantoWeight(packed, width)


QUANTO: Format = QuantoFormat()
