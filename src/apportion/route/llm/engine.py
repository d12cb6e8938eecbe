"""Many sequences decoded together: as one ends, the next takes its slot; equal beginnings are computed once.

    rows --families by equal beginning, shortest first--> admit (one pass over the prompts) --> step, step, step ...

A step is one token of every active sequence. On a GPU its results are read while the next one runs; a sequence that
has ended then takes part in one step too many, which nobody reads.
A batch that does not fit is begun again with half the slots.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from apportion.core.device import free_memory, is_out_of_memory
from apportion.core.errors import ServiceError, first_line
from apportion.core.launch import to_host
from apportion.models.own import runs_kernels_of_quanto
from apportion.route.llm.generate import Row, choose, generate
from apportion.route.llm.passes import Memory, NotRecordedError, Passes, recorded_length
from apportion.route.llm.slots import SlotCache

PREFILL_TOKENS = {"cpu": 2048, "cuda": 32768}  # in one pass over prompts
FAMILY_TOKENS = 24  # rows that begin with so many equal tokens share all that they have in common
TOLERANCE = 0.05  # of the largest logit, in half precision
_OTHER_CACHE = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError)


@dataclass(slots=True)
class Generation:
    """How an engine works, and what it had to give up.

    Attributes:
        mode: "slots" (fixed memory), or "batches" (a cache that grows) for models that need their own kind.
        graph: whether steps are replayed as CUDA graphs. reason: of both choices.
        slots: sequences decoded together. halved: how often a batch did not fit, so that they became half as many.
        recorded: most recorded steps held at a time. replayed_steps, plain_steps: steps from recordings and without.
    """

    mode: str
    graph: bool
    reason: str
    slots: int
    halved: int = 0
    recorded: int = 0
    replayed_steps: int = 0
    plain_steps: int = 0


@dataclass(frozen=True, slots=True)
class _Unread:
    """A step that was begun: the rows of its slots, and its results on their way to the host."""

    rows: list[tuple[int, Row]]
    best: torch.Tensor
    ready: torch.cuda.Event | None
    logits: torch.Tensor


class Engine:
    """Decodes rows of token ids with one model; not for two threads at once.

    Args:
        model: a causal LM of transformers in evaluation mode.
        end_ids: tokens that end a sequence. slots: sequences decoded together.
    """

    def __init__(self, model: Any, *, end_ids: frozenset[int], pad_id: int, slots: int) -> None:
        self._model, self._end_ids, self._pad_id = model, end_ids, pad_id
        self._passes = Passes(model, pad_id)
        self._memory: Memory | None = None
        self._ahead = int(self._passes.device.type == "cuda")  # steps begun before the last one is read
        self.how = self._choose_mode(slots)

    def run(self, rows: Sequence[Row]) -> None:
        """Fill in every row's tokens, log-probabilities and latency.

        Raises:
            ServiceError: one sequence alone does not fit into memory.
        """
        while left := [row for row in rows if not row.done]:
            try:
                self._run_slots(left) if self.how.mode == "slots" else self._run_batches(left)
            except RuntimeError as error:
                if not no_room(error):
                    raise
                self._halve(left, error)

    def _run_batches(self, rows: Sequence[Row]) -> None:
        ordered = sorted(rows, key=lambda row: len(row.prompt))
        for at in range(0, len(ordered), self.how.slots):
            batch = ordered[at : at + self.how.slots]
            generate(self._model, batch, end_ids=self._end_ids, pad_id=self._pad_id)

    def _halve(self, left: Sequence[Row], error: RuntimeError) -> None:
        """Let go of memory; what is unfinished begins again with half the slots."""
        if self.how.slots == 1:
            longest = max(len(row.prompt) + row.max_tokens for row in left)
            raise ServiceError(
                f"--llm: a sequence of {longest} tokens does not fit into memory: {first_line(error)}",
                "lower max_tokens or --k, or use a smaller model or another --device",
            ) from error
        self.how.slots, self.how.halved = self.how.slots // 2, self.how.halved + 1
        self._memory = None
        self._passes.forget()
        for row in left:
            if not row.done:
                row.restart()
        free_memory(str(self._passes.device))

    def _choose_mode(self, slots: int) -> Generation:
        """Fixed memory where that gives the logits that the model's own cache gives, tried on a few tokens."""
        try:
            fits, reason = self._same_as_own_cache(), "the model keeps more than keys and values of every token"
        except _OTHER_CACHE as error:
            if is_out_of_memory(error):  # says nothing of the model, and slower ways would need no less
                raise
            fits, reason = False, f"the model needs a cache of its own kind ({type(error).__name__})"
        if not fits:
            return Generation("batches", graph=False, reason=reason, slots=slots)
        cuda = self._passes.device.type == "cuda"
        graph = cuda and not runs_kernels_of_quanto(self._model)
        reason = f"same logits as the model's own cache; {'a' if cuda else 'no'} CUDA device"
        reason += "; quanto's kernels cannot be recorded" if cuda and not graph else ""
        return Generation("slots", graph=graph, reason=reason, slots=slots)

    def _same_as_own_cache(self) -> bool:
        config = self._model.config.get_text_config()
        if not sees_all(config):
            return False
        ids = [number % int(config.vocab_size) for number in range(1, 7)]
        with torch.inference_mode():
            ours = self._passes.prefill([ids], 0, SlotCache(1, len(ids)))
            own = self._model(input_ids=torch.tensor([ids], device=self._passes.device)).logits[:, -1]
        return bool((ours - own).abs().max() <= TOLERANCE * own.abs().max())

    def _run_slots(self, rows: Sequence[Row]) -> None:
        queue = queue_of(rows)
        size = min(self.how.slots, len(queue))
        memory = self._room(size, max(len(row.prompt) + row.max_tokens for row in rows))
        active: list[Row | None] = [None] * size
        ahead = 0 if any(row.temperature > 0 for row in rows) else self._ahead
        unread: deque[_Unread] = deque()
        with torch.inference_mode():
            while queue or any(active) or unread:
                free = [slot for slot, row in enumerate(active) if row is None]
                if queue and len(free) >= min(len(queue), max(1, size // 4)):
                    self._admit(memory, active, free, queue)
                elif free and not queue and any(active):
                    active = self._narrow(memory, active)
                working = any(active)
                if working:
                    unread.append(self._step(memory, active))
                while len(unread) > (ahead if working else 0):
                    self._read(memory, active, unread.popleft())

    def _room(self, slots: int, places: int) -> Memory:
        """The memory, made anew where it is too small; its recorded steps are then lost."""
        held = self._memory
        if held is not None and held.cache.slots >= slots and held.cache.places >= places:
            return held
        if held is not None:
            slots, places = max(slots, held.cache.slots), max(places, held.cache.places)
        self._memory = held = None  # before the new one is taken
        self._memory = self._passes.memory(slots, recorded_length(places) if self.how.graph else places)
        return self._memory

    def _admit(
        self, memory: Memory, active: list[Row | None], free: Sequence[int], queue: list[tuple[Row, int]]
    ) -> None:
        """Rows of one family into free slots: all of their prompts but the last token, which the next step reads."""
        taken, shared = take_family(queue, len(free), PREFILL_TOKENS[self._passes.device.type])
        start = time.perf_counter()
        width = max(len(row.prompt) for row in taken) - 1
        if width > 0:
            spare = SlotCache(len(taken), width)
            self._passes.prefill([row.prompt[:-1] for row in taken], shared, spare)
            memory.cache.fill(spare.memory, into=free[: len(taken)])
        for slot, row in zip(free, taken, strict=False):
            row.started_s, row.shared_tokens = start, shared
            active[slot] = row
        memory.put(free[: len(taken)], [row.prompt[-1] for row in taken], [len(row.prompt) - 1 for row in taken])

    def _narrow(self, memory: Memory, active: list[Row | None]) -> list[Row | None]:
        """Active rows moved together, where that makes the next steps smaller."""
        kept = [slot for slot, row in enumerate(active) if row is not None]
        rows = recorded_rows(len(kept)) if self.how.graph else len(kept)
        if rows >= len(active):
            return active
        memory.move(kept, max(len(row.prompt) + row.issued for row in active if row is not None))
        return [active[slot] for slot in kept] + [None] * (rows - len(kept))

    def _step(self, memory: Memory, active: list[Row | None]) -> _Unread:
        """One more token of every active row; rows whose last token this is leave their slot."""
        working = [(slot, row) for slot, row in enumerate(active) if row is not None]
        length = max(len(row.prompt) + row.issued for _, row in working)
        best, logits = self._forward(memory, len(active), length)
        read, ready = to_host(best)
        for slot, row in working:
            row.issued += 1
            if row.issued >= row.max_tokens:
                active[slot] = None
        return _Unread(working, read, ready, logits)

    def _read(self, memory: Memory, active: list[Row | None], step: _Unread) -> None:
        """Give the rows of a step their tokens; rows that have ended leave their slot."""
        if step.ready is not None:
            step.ready.synchronize()
        going = [(slot, row) for slot, row in step.rows if not row.done]  # others ended in a step not read by then
        slots, rows = [slot for slot, _ in going], [row for _, row in going]
        sampled = any(row.temperature > 0 for row in rows)
        chosen = choose(rows, step.best[:, slots], step.logits[slots] if sampled else step.logits)
        for row, (token, logprob, margin) in zip(rows, chosen, strict=True):
            row.take(token, logprob, margin, self._end_ids)
        active[:] = [None if row is not None and row.done else row for row in active]
        if sampled:
            memory.put(slots, [one[0] for one in chosen], [len(row.prompt) + row.issued - 1 for row in rows])

    def _forward(self, memory: Memory, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.how.graph:
            self.how.plain_steps += 1
            return self._passes.step(memory, rows, length)
        known = len(memory.steps)
        try:
            done = self._passes.replay(memory, rows, length)
        except NotRecordedError as error:
            if no_room(error.cause):
                raise error.cause from error
            self.how.plain_steps += 1
            self._unrecorded(error.cause)
            return error.done
        self.how.recorded = max(self.how.recorded, len(memory.steps))
        if len(memory.steps) > known:  # the first of its kind ran plainly, and was recorded after it
            self.how.plain_steps += 1
        else:
            self.how.replayed_steps += 1
        return done

    def _unrecorded(self, error: RuntimeError) -> None:
        """Steps run plainly from here on; why is kept."""
        self.how.graph = False
        self.how.reason = f"a step could not be recorded as a CUDA graph: {first_line(error)[:300]}"


def recorded_rows(rows: int) -> int:
    """The fewest rows of at least so many that steps are recorded for: powers of four.

    >>> recorded_rows(1), recorded_rows(5), recorded_rows(64)
    (1, 16, 64)
    """
    return 1 << -(-(rows - 1).bit_length() // 2) * 2


def sees_all(config: Any) -> bool:
    """Whether every layer attends to every token before, as a configuration of transformers says."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return window is None
    return set(kinds) == {"full_attention"}


def queue_of(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Rows with the number of tokens that they share with their family, to be taken from the end.

    A family begins with the same 24 tokens; what all of it has in common is shared, but never a whole prompt.
    """
    families: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        families.setdefault(tuple(row.prompt[:FAMILY_TOKENS]), []).append(row)
    queue = []
    for beginning, family in families.items():
        shared = _common(family) if len(family) > 1 and len(beginning) == FAMILY_TOKENS else 0
        queue += [(row, shared) for row in sorted(family, key=lambda row: len(row.prompt))]
    return queue[::-1]


def take_family(queue: list[tuple[Row, int]], most: int, budget_tokens: int) -> tuple[list[Row], int]:
    """Rows of one family from the end of the queue, at most so many and so many padded tokens, and what they share."""
    first, shared = queue[-1]
    taken: list[Row] = []
    while queue and len(taken) < most:
        row, its = queue[-1]
        too_many = (len(row.prompt) - shared) * (len(taken) + 1) > budget_tokens
        if its != shared or row.prompt[:shared] != first.prompt[:shared] or (taken and too_many):
            break
        taken.append(queue.pop()[0])
    return taken, shared


def _common(rows: Sequence[Row]) -> int:
    """Tokens that all prompts begin with, at most all but two of the shortest."""
    low, high = min(row.prompt for row in rows), max(row.prompt for row in rows)
    most = min(len(row.prompt) for row in rows) - 2
    return next((at for at in range(most) if low[at] != high[at]), max(most, 0))


def no_room(error: RuntimeError) -> bool:
    """Whether a batch was too large for the memory, or for one kernel."""
    return is_out_of_memory(error) or "invalid configuration argument" in str(error)
