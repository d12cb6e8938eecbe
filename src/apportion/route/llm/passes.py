"""Forward passes of one model over slots: prompts, their common beginnings, and steps replayed as CUDA graphs."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from apportion.core.graphs import record
from apportion.models.decoding import GROWING
from apportion.route.llm.generate import likeliest
from apportion.route.llm.slots import Layers, SlotCache, causal_mask, step_mask

KEPT_BEGINNINGS = 32
PLACES = (128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)  # lengths that steps are recorded for


@dataclass(slots=True)
class Recorded:
    """A recorded step: replay it, then read the results."""

    graph: Any
    best: Tensor
    logits: Tensor


@dataclass(slots=True)
class Memory:
    """What a step reads and writes, at fixed addresses; recorded steps are by (rows, length).

    A step leaves each slot's next token and position behind, so that steps can follow each other unread.
    """

    cache: SlotCache
    ids: Tensor  # [slots, 1]
    positions: Tensor  # [slots]
    steps: dict[tuple[int, int], Recorded] = field(default_factory=dict)
    pool: Any = None  # of all recorded steps; it ends with the last of them, so a new memory needs a new one

    def put(self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> None:
        """The next token of some slots, and its place."""
        at, new, places = torch.tensor([list(slots), list(tokens), list(positions)], device=self.ids.device)
        self.ids[at, 0] = new
        self.positions[at] = places

    def move(self, kept: Sequence[int], length: int) -> None:
        """Put the sequences of these slots, in this order, into the first slots."""
        slots = torch.tensor(kept, device=self.ids.device)
        self.cache.move(slots, length)
        self.ids[: len(kept)] = self.ids[slots]
        self.positions[: len(kept)] = self.positions[slots]


class NotRecordedError(RuntimeError):
    """A step ran, but could not be recorded.

    Attributes:
        done: its results. cause: what the recording said.
    """

    def __init__(self, done: tuple[Tensor, Tensor], cause: RuntimeError) -> None:
        super().__init__(str(cause))
        self.done, self.cause = done, cause


class Passes:
    """A causal LM of transformers, called with a `SlotCache`."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        self.device: torch.device = model.device
        self._dtype: torch.dtype = next(model.parameters()).dtype
        self._beginnings: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def memory(self, slots: int, places: int) -> Memory:
        """Fresh memory; where steps are recorded, for the next of the lengths that they are recorded for."""
        ids = torch.full((slots, 1), self._pad_id, device=self.device)
        return Memory(SlotCache(slots, places), ids, torch.zeros(slots, dtype=torch.long, device=self.device))

    def forget(self) -> None:
        """Let go of the common beginnings."""
        self._beginnings.clear()

    def prefill(self, prompts: Sequence[list[int]], shared: int, cache: SlotCache) -> Tensor:
        """Keys and values of prompts that begin with the same `shared` tokens, computed once.

        Returns:
            [rows, vocabulary] logits of the last place, which is a row's own only for the longest rows.
        """
        if shared:
            cache.fill(self._beginning(tuple(prompts[0][:shared])))
        tokens = max(len(prompt) for prompt in prompts) - shared
        padded = [prompt[shared:] + [self._pad_id] * (tokens + shared - len(prompt)) for prompt in prompts]
        cache.aim(len(prompts), shared + tokens, start=shared)
        return self._call(
            torch.tensor(padded, device=self.device),
            torch.arange(shared, shared + tokens, device=self.device)[None].expand(len(prompts), -1),
            causal_mask(shared, tokens, self._dtype, self.device),
            cache,
        )

    def _beginning(self, tokens: tuple[int, ...]) -> Layers:
        if tokens not in self._beginnings:
            cache = SlotCache(1, len(tokens))
            self.prefill([list(tokens)], 0, cache)
            self._beginnings[tokens] = cache.memory
            if len(self._beginnings) > KEPT_BEGINNINGS:
                self._beginnings.popitem(last=False)
        self._beginnings.move_to_end(tokens)
        return self._beginnings[tokens]

    def step(self, memory: Memory, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """One token of the first `rows` slots, which see at most `length` places: `likeliest`, and the logits."""
        positions = memory.positions[:rows]
        memory.cache.aim(rows, length, positions=positions)
        mask = step_mask(positions, length, self._dtype)
        logits = self._call(memory.ids[:rows], positions[:, None], mask, memory.cache)
        best = likeliest(logits)
        memory.ids[:rows, 0] = best[0].long()
        positions.add_(1).clamp_(max=memory.cache.places - 1)  # slots that nobody reads go on too
        return best, logits

    def replay(self, memory: Memory, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """`step` as a CUDA graph; the first of its kind runs plainly, which sets up what kernels need, and is recorded.

        Raises:
            NotRecordedError: it cannot be recorded; it holds this step's results.
        """
        key = (rows, min(recorded_length(length), memory.cache.places))
        if key not in memory.steps:
            done = self.step(memory, *key)
            try:
                memory.steps[key] = self._record(memory, *key)
            except RuntimeError as error:
                raise NotRecordedError(done, error) from error
            return done
        step = memory.steps[key]
        step.graph.replay()
        return step.best, step.logits

    def _record(self, memory: Memory, rows: int, length: int) -> Recorded:
        memory.pool = memory.pool or torch.cuda.graph_pool_handle()
        graph, made = record(lambda: self.step(memory, rows, length), self.device, pool=memory.pool, lean=True)
        return Recorded(graph, *made)

    def _call(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        with sdpa_kernel(GROWING):
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[:, -1]
        return logits


def recorded_length(length: int) -> int:
    """The shortest length of at least `length` that steps are recorded for.

    >>> recorded_length(300), recorded_length(9000)
    (384, 10240)
    """
    return next((places for places in PLACES if places >= length), -(-length // 2048) * 2048)
