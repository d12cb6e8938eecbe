"""How one block, or the head, is run for many coalitions: as Python runs it, or replayed on a GPU.

A small block takes a GPU a quarter of a millisecond and Python twice that to launch. Along the trie the input
of block i always lies at depth i, so each depth has one buffer, and every (block, widths) pair is recorded at its
first use as a CUDA graph from buffer i to buffer i + 1; so is the head. Every value comes from a replay, so that
it does not depend on what was run before. Graphs need weights that stay where they are: all of them decoded.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.game.bank import WeightBank
from apportion.bits.game.players import Assignment
from apportion.core.errors import first_line
from apportion.core.graphs import record
from apportion.models.embedded import Embedded
from apportion.models.staged import StagedModel

MOST_GRAPHS = 4096  # the rest of a finer game is run plainly
Key = tuple[int, Assignment] | str
Work = Callable[[], object]
REPLAY_BYTES = 256 << 20  # hidden states larger than this keep a GPU busy without graphs


@runtime_checkable
class Engine(Protocol):
    """Runs blocks with given widths inside, and the head.

    Attributes:
        start: hidden states before block 0.
        mode: `plain` or `replay`, and why where it is not the faster one.
        recorded: CUDA graphs that were recorded.
    """

    start: Tensor

    @property
    def mode(self) -> str: ...

    @property
    def recorded(self) -> int: ...

    def block(self, block: int, columns: Assignment, hidden: Tensor) -> Tensor:
        """The block's output; valid until the same block runs again."""
        ...

    def nll(self, hidden: Tensor) -> Float[Tensor, " windows"]:
        """NLL per window, on the device; valid until the next call."""
        ...


def engine_for(
    bank: WeightBank,
    embedded: Embedded,
    windows: Int[Tensor, "windows tokens"],
    teacher: Float[Tensor, "windows tokens hidden"] | None = None,
) -> Engine:
    """Replay for a small model on a CUDA device that holds all its decoded weights, plain calls otherwise.

    Args:
        teacher: see `StagedModel.device_nll`.
    """
    plain = PlainEngine(bank, embedded, windows, teacher)
    if embedded.hidden.is_cuda and embedded.hidden.nbytes <= REPLAY_BYTES:
        if bank.cache.whole:
            return ReplayEngine(plain)
        plain.reason = f" (no CUDA graphs: {bank.cache.reason})"
    return plain


class PlainEngine:
    """Swaps weights by pointer and calls the modules."""

    def __init__(
        self,
        bank: WeightBank,
        embedded: Embedded,
        windows: Int[Tensor, "windows tokens"],
        teacher: Float[Tensor, "windows tokens hidden"] | None = None,
    ) -> None:
        self.bank, self.embedded, self.windows, self.teacher = bank, embedded, windows, teacher
        self.staged: StagedModel = bank.staged
        self.start: Tensor = embedded.hidden
        self.recorded = 0
        self.reason = ""

    @property
    def mode(self) -> str:
        return f"plain{self.reason}"

    def block(self, block: int, columns: Assignment, hidden: Tensor) -> Tensor:
        self.bank.put_block(block, columns)
        out = self.staged.run_block(block, hidden, self.embedded)
        self.bank.clear_block(block)
        return out

    def nll(self, hidden: Tensor) -> Float[Tensor, " windows"]:
        return self.staged.device_nll(hidden, self.windows, self.teacher)


class ReplayEngine:
    """Records what is asked for often and replays it; the rest runs as `PlainEngine` does.

    Attributes:
        recorded: how many graphs there are.
        failure: why nothing more is recorded; empty while recording works. It is in `mode`, and so in the result.
    """

    def __init__(self, plain: PlainEngine) -> None:
        self.plain = plain
        self.start: Tensor = plain.start
        hidden = plain.start
        self.buffers = [hidden, *(torch.empty_like(hidden) for _ in range(plain.staged.layout.block_count))]
        self.sums = torch.zeros(len(plain.windows), dtype=torch.float64, device=hidden.device)
        self.graphs: dict[Key, torch.cuda.CUDAGraph] = {}
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.failure = ""
        self.drops = plain.bank.cache.drops

    @property
    def recorded(self) -> int:
        return len(self.graphs)

    @property
    def mode(self) -> str:
        return f"replay until: {self.failure}" if self.failure else "replay"

    @torch.inference_mode()
    def block(self, block: int, columns: Assignment, hidden: Tensor) -> Tensor:
        source, target = self.buffers[block], self.buffers[block + 1]
        assert hidden.data_ptr() == source.data_ptr(), "a block reads the buffer of its depth"
        self._run(
            (block, columns),
            lambda: target.copy_(self.plain.block(block, columns, source)),
            decode=lambda: self.plain.bank.put_block(block, columns),
        )
        return target

    @torch.inference_mode()
    def nll(self, hidden: Tensor) -> Float[Tensor, " windows"]:
        assert hidden.data_ptr() == self.buffers[-1].data_ptr(), "the head reads the last buffer"
        self._run("head", lambda: self.sums.copy_(self.plain.nll(self.buffers[-1])))
        return self.sums

    def _run(self, key: Key, work: Work, decode: Work = lambda: None) -> None:
        """Replay, recording first what is new; nothing any more once what graphs point to was let go.

        Args:
            decode: what a recording needs decoded, before it begins: some libraries' kernels run on the default stream,
                and what they make there would be read before it is there.
        """
        if self.plain.bank.cache.drops != self.drops:
            self.graphs.clear()
            self.failure = "decoded weights were let go"
        if key not in self.graphs and not self.failure and len(self.graphs) < MOST_GRAPHS:
            decode()
            self._record(key, work)
        if key in self.graphs:
            self.graphs[key].replay()
        else:
            work()

    def _record(self, key: Key, work: Work) -> None:
        """Record; a model that cannot be recorded is run plainly from then on, and `mode` says so."""
        try:
            self.graphs[key], _ = record(work, self.start.device, first=work, pool=self.pool)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.failure = f"{key} cannot be recorded as a CUDA graph ({first_line(error)})"
