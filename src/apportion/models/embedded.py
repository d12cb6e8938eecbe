"""Texts as they enter block 0, the latest kept: a text is embedded once however often it is run."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from apportion.models.calls import Call

KEPT_BYTES = 1 << 30  # of embedded texts


@dataclass(frozen=True, slots=True)
class Embedded:
    """Hidden states before block 0 and, per batch size, what each block is called with besides them."""

    hidden: Float[Tensor, "windows tokens hidden"]
    calls: dict[int, tuple[Call, ...]]
    batch: int


@dataclass(frozen=True, eq=False, slots=True)
class InPlace:
    """A parameter's memory, which stays its own as long as it is held here, and how often it was written to."""

    data: Tensor
    version: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InPlace):
            return NotImplemented
        return self.data.data_ptr() == other.data.data_ptr() and self.version == other.version


def in_place(parameters: Iterable[nn.Parameter]) -> list[InPlace]:
    """Parameters as they are now."""
    return [InPlace(item.data, item._version) for item in parameters]


@dataclass(slots=True)
class EmbeddedTexts:
    """The latest texts, up to KEPT_BYTES, each with the weights that it was embedded by."""

    kept: list[tuple[Tensor, list[InPlace], Embedded]] = field(default_factory=list)

    def find(self, windows: Int[Tensor, "windows tokens"], weights: list[InPlace], batch: int) -> Embedded | None:
        """The text embedded by these weights in batches of this size, if it was."""
        for index, (text, by, embedded) in enumerate(self.kept):
            same = text.shape == windows.shape and embedded.batch == batch and by == weights
            if same and torch.equal(text, windows.to(text.device)):
                self.kept.append(self.kept.pop(index))
                return embedded
        return None

    def keep(self, windows: Int[Tensor, "windows tokens"], weights: list[InPlace], embedded: Embedded) -> None:
        """Keep a text, and let go of the oldest where there is no room."""
        self.kept.append((windows, weights, embedded))
        while sum(item.hidden.nbytes for *_, item in self.kept) > KEPT_BYTES:
            self.kept.pop(0)

    def clear(self) -> None:
        """Let go of all."""
        self.kept.clear()
