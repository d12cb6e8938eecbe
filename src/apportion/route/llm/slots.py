"""Keys and values of many sequences in memory that never moves: one slot per sequence, one place per token.

    keys[layer]  [slots, heads, places, channels]      a token at position p of a sequence lies in place p

Sequences begin at place 0 of their slot, so nothing is padded on the left; what lies behind a sequence's last
token is masked and overwritten later. Fixed addresses let a CUDA graph replay a step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

Layers = list[tuple[Tensor, Tensor]]


class SlotCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """What the model's attention writes to and reads from; `aim` says where, before each forward pass.

    Args:
        slots, places: how many sequences, of how many tokens at most. Memory is taken at the first pass.
    """

    def __init__(self, slots: int, places: int) -> None:
        super().__init__(layers=[])
        self.slots, self.places = slots, places
        self.memory: Layers = []
        self._rows, self._start, self._length = 0, 0, 0
        self._positions: Tensor | None = None

    def aim(self, rows: int, length: int, *, start: int = 0, positions: Tensor | None = None) -> None:
        """The next pass is of the first `rows` slots and sees their first `length` places.

        Args:
            start: the place of the pass's first token, for all rows alike.
            positions: [rows] instead of `start`, for one token of each row.
        """
        self._rows, self._length, self._start, self._positions = rows, length, start, positions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values [rows, heads, tokens, channels]; all that the pass may see of this layer."""
        while len(self.memory) <= layer_idx:
            self.memory.append((self._empty(key_states), self._empty(value_states)))
        keys, values = self.memory[layer_idx]
        for held, new in ((keys, key_states), (values, value_states)):
            if self._positions is None:
                held[: self._rows, :, self._start : self._start + new.shape[2]] = new
            else:
                held[torch.arange(self._rows, device=held.device), :, self._positions] = new[:, :, 0]
        return keys[: self._rows, :, : self._length], values[: self._rows, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Places before the pass; positions are given explicitly, so that nothing is derived from it."""
        return self._start

    def fill(self, layers: Layers, *, into: Sequence[int] | None = None) -> None:
        """Copy the beginnings of sequences: into all slots, or from each sequence into the slot named for it."""
        while len(self.memory) < len(layers):
            key, value = layers[len(self.memory)]
            self.memory.append((self._empty(key), self._empty(value)))
        slots = None if into is None else torch.tensor(into, device=layers[0][0].device)
        for pair, new_pair in zip(self.memory, layers, strict=True):
            for held, new in zip(pair, new_pair, strict=True):
                if slots is None:
                    held[:, :, : new.shape[2]] = new
                else:
                    held[slots, :, : new.shape[2]] = new

    def move(self, kept: Tensor, length: int) -> None:
        """Put the sequences of these slots, in this order, into the first slots."""
        for pair in self.memory:
            for held in pair:
                held[: len(kept), :, :length] = held[kept, :, :length]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.slots, like.shape[1], self.places, like.shape[3])


def causal_mask(start: int, tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, 1, tokens, start + tokens], added to attention scores: token i sees places up to start + i."""
    places = torch.arange(start + tokens, device=device)
    return _added(places <= places[start:, None], dtype)[None, None]


def step_mask(positions: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """[rows, 1, 1, length], added to attention scores: each row sees the places up to its own position."""
    places = torch.arange(length, device=positions.device)
    return _added(places <= positions[:, None], dtype)[:, None, None]


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
