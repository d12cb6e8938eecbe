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

from apportion.formats.width import Width


@dataclass(frozen=True, slots=True)
class QuantoWeight:
    """A quanto weight tensor."""

    packed: Any
    width: Width

    @classmethod
    def from_tensors(cls, saved: Mapping[str, Tensor], shape: tuple[int, int], width: Width) -> "QuantoWeight":
        """Read back what `tensors` gave; the group size is ours to restore, quanto would guess it."""
        from optimum.quanto import WeightQBitsTensor, qint2, qint4

        qtype = {2: qint2, 4: qint4}[width.bits]
        packed = WeightQBitsTensor.load_from_state_dict(
            dict(saved), "weight.", qtype, 0, width.group_size, torch.Size(shape), (shape[1], 1), missing_keys=[]
        )
        return cls(packed, width)

    def cast(self, dtype: torch.dtype) -> Any:
        """The same codes with scale and shift in a dtype: quanto computes in the dtype of its scale."""
        from optimum.quanto import WeightQBitsTensor

        own = self.packed
        return WeightQBitsTensor(
            own.qtype, own.axis, self.width.group_size, own.size(), own.stride(), own._data,
            own._scale.to(dtype), own._shift.to(dtype),
        )  # fmt: skip

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        out: Tensor = self.cast(dtype).dequantize()
        return out

    def tensors(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        self.packed.save_to_state_dict(found, "weight.", keep_vars=False)
        return found
