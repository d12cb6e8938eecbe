"""Every matrix of a model in every type of its ladder: encoded once, decoded once, put in place by pointer."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from apportion.bits.game import Assignment
from apportion.bits.gguf.ladders import Ladders
from apportion.bits.rounding.ggml import decode, quantize
from apportion.core.progress import progress
from apportion.formats.ggml import GgmlWeight, ggml_width
from apportion.models.gguf.source import Source
from apportion.models.parameters import swapped
from apportion.models.staged import StagedModel

DECODED_BYTES = 8 << 30  # of decoded weights that are kept; others are decoded when they are put in place
STORED = torch.float16  # of decoded weights that are kept: finer than what is lost to any type


@dataclass
class GgufBank:
    """A model whose matrices can be had in any type of their ladders.

    Attributes:
        encoded: by (GGUF name, type). own: the original weights in the compute dtype.
        seconds: spent on encoding. room: bytes of decoded weights that are kept.
    """

    staged: StagedModel
    source: Source
    ladders: Ladders
    encoded: Mapping[tuple[str, str], GgmlWeight]
    seconds: float
    room: int = DECODED_BYTES
    own: dict[str, Tensor] = field(init=False)
    parameters: dict[str, nn.Parameter] = field(init=False)
    _decoded: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _held: int = 0

    def __post_init__(self) -> None:
        modules = self.source.modules
        self.parameters = {name: self.staged.model.get_submodule(modules[name]).weight for name in self.ladders.names}
        self.own = {name: parameter.data for name, parameter in self.parameters.items()}

    def decoded(self, name: str, kind: str) -> Tensor:
        """A matrix as the model here has it, on its device."""
        if (name, kind) in self._decoded:
            return self._decoded[name, kind]
        return self._hold((name, kind), self._decode((name, kind)))

    def decode_all(self, threads: int | None = None) -> None:
        """Decode everything that will be kept, on all cores."""
        kept, room = [], self.room - self._held
        for key, item in self.encoded.items():
            size = math.prod(item.shape) * STORED.itemsize
            if size <= room:
                kept.append(key)
                room -= size
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            for key, weight in zip(kept, pool.map(self._decode, kept), strict=True):
                self._hold(key, weight)

    def _decode(self, key: tuple[str, str]) -> Tensor:
        return self.source.restored(decode(self.encoded[key]), key[0]).to(STORED)

    def _hold(self, key: tuple[str, str], weight: Tensor) -> Tensor:
        weight = weight.to(self.staged.placement.device)
        if self._held + weight.nbytes <= self.room:
            self._decoded[key] = weight
            self._held += weight.nbytes
        return weight

    def put(self, player: int, rung: int) -> None:
        """Give one matrix a type."""
        name, types = self.ladders.names[player], self.ladders.types[player]
        weight = self.decoded(name, types[min(rung, len(types) - 1)])
        self.parameters[name].data = weight.to(self.staged.compute_dtype)

    def restore(self) -> None:
        """Put the original weights back."""
        for name, parameter in self.parameters.items():
            parameter.data = self.own[name]

    def original_logits(self, hidden: Tensor) -> Tensor:
        """The original's logits of hidden states after its last block, whatever is in place now."""
        with swapped(self.staged.model, {self.source.modules[name]: weight for name, weight in self.own.items()}):
            return self.staged.logits(hidden)

    @contextmanager
    def in_place(self, assignment: Assignment) -> Iterator[StagedModel]:
        """The model under a plan; with its own weights again afterwards."""
        try:
            for player, rung in enumerate(assignment):
                self.put(player, rung)
            self.staged.forget_texts()  # the embedding is a player
            yield self.staged
        finally:
            self.restore()
            self.staged.forget_texts()


def encode_all(
    source: Source,
    ladders: Ladders,
    importance: Mapping[str, Tensor],
    threads: int | None = None,
    only: Mapping[str, str] | None = None,
) -> tuple[dict[tuple[str, str], GgmlWeight], float]:
    """Every matrix in every type of its ladder, and the seconds that took.

    Args:
        importance: by GGUF name; matrices without are encoded as llama.cpp does without an importance matrix.
        only: one type of every matrix, instead of all of its ladder.
    """
    began = time.monotonic()
    every = [(name, kind) for name, types in zip(ladders.names, ladders.types, strict=True) for kind in types]
    jobs = every if only is None else [(name, kind) for name, kind in every if only[name] == kind]
    found = {}
    with progress("encoding", len(jobs), "matrices") as advance:
        last, weight = "", torch.empty(0, 0)
        for name, kind in jobs:
            if name != last:
                last, weight = name, source.weight(name).float()
            found[name, kind] = quantize(weight, ggml_width(kind), importance.get(name), threads=threads)
            advance()
    return found, time.monotonic() - began
