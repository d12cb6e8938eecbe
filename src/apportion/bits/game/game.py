"""The value of a coalition: the mean negative log-likelihood per token of the model at given widths.

The next tokens are those of the text (the paper's), or full precision's predictions of them, each with its probability:
then a value less full precision's own is the mean KL divergence from it.

Many coalitions are evaluated as a trie over blocks in model order. Sorted by their widths, two neighbours
share the longest prefix; hidden states after each block of the current one are kept, so that the next starts
where it differs. Every edge of the trie is one block forward; memory is bounded by the trie's depth.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.game.bank import WeightBank
from apportion.bits.game.costs import Costs
from apportion.bits.game.engine import Engine, engine_for
from apportion.bits.game.players import Assignment, Player, decode, encode
from apportion.bits.rounding import FULL_PRECISION
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json
from apportion.core.device import free_memory, where_not_finite, within_memory
from apportion.core.errors import NumericError
from apportion.core.launch import to_host
from apportion.core.log import AppendLog
from apportion.core.progress import progress
from apportion.models.staged import StagedModel
from apportion.models.text import Windows

COALITIONS = "coalitions"  # what bars say
Values = dict[Assignment, NDArray[np.float64]]
Read = Callable[[], NDArray[np.float64]]
IN_FLIGHT = {"cuda": 8}  # coalitions queued on a GPU before the first is read; a kill loses no more than these


@runtime_checkable
class Game(Protocol):
    """Assignments in, values out; known values are not measured again."""

    costs: Costs

    def values(self, assignments: Sequence[Assignment]) -> Float[NDArray[np.float64], "assignments windows"]:
        """NLL per window in nats per token, one row for each assignment."""
        ...


@dataclass(slots=True)
class Counts:
    """What was computed by this process, and what naive evaluation of the same requests would have cost."""

    evaluations: int = 0
    block_forwards: int = 0
    naive_block_forwards: int = 0


def block_states(players: Sequence[Player], blocks: int, assignment: Assignment) -> tuple[Assignment, ...]:
    """The widths inside each block: the trie's labels along an assignment's path."""
    inside: list[list[int]] = [[] for _ in range(blocks)]
    for player, column in zip(players, assignment, strict=True):
        inside[player.block].append(column)
    return tuple(map(tuple, inside))


def trie_edges(paths: Iterable[tuple[Assignment, ...]]) -> int:
    """Block forwards that a set of distinct paths needs with every shared prefix computed once.

    >>> trie_edges([((2,), (2,)), ((2,), (4,)), ((4,), (2,))])
    5
    """
    edges, previous = 0, None
    for path in sorted(set(paths)):
        edges += len(path) - (0 if previous is None else shared(previous, path))
        previous = path
    return edges


def shared(first: tuple[Assignment, ...], second: tuple[Assignment, ...]) -> int:
    """Length of the common prefix of two paths."""
    pairs = enumerate(zip(first, second, strict=True))
    return next((depth for depth, (one, other) in pairs if one != other), len(first))


class MeasuredGame:
    """The game on a real model and real text: one for all that a run asks of them.

    Args:
        bank: the model with its rounded weights.
        text: the windows on which values are measured.
        log: where values are appended as they come; its records are known from the start.
        settings: what the values depend on, by digest and by name.
        teacher: `full_precision_hidden` of the text, where full precision's predictions are the labels; asked for when
            something is measured.

    Attributes:
        known: values so far. resumed: those of an earlier run.
    """

    def __init__(
        self,
        bank: WeightBank,
        text: Windows,
        log: AppendLog | None = None,
        settings: Json | None = None,
        teacher: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        self.bank, self.text, self.log, self.teacher = bank, text, log, teacher
        self.costs = bank.costs
        self.settings: Json = settings or {}
        self.counts = Counts()
        self.known: Values = values_of(log.records if log else [])
        self.resumed = frozenset(self.known)
        self._engine: Engine | None = None

    def beside(self, log: AppendLog, known: Values) -> "MeasuredGame":
        """The same game with values of its own, sharing the embedded text and everything recorded.

        Args:
            known: values to begin with, besides the log's.
        """
        other = MeasuredGame(self.bank, self.text, log, self.settings, self.teacher)
        other.known = {**known, **other.known}
        other._engine = self._start()
        return other

    def values(self, assignments: Sequence[Assignment]) -> Float[NDArray[np.float64], "assignments windows"]:
        """NLL per window of each assignment, measuring those not known yet in trie order.

        Raises:
            NumericError: a value is NaN or infinite; the coalition is named.
            OutOfMemoryError: a single window does not fit the device.
        """
        staged = self.bank.staged
        asked = sum(item not in self.known for item in assignments)  # repetitions in one request are naive work too
        self.counts.naive_block_forwards += asked * staged.layout.block_count
        pending = {self._path(item): item for item in assignments if item not in self.known}
        if pending:
            try:
                with progress(COALITIONS, trie_edges(pending), "block forwards") as advance:
                    self._walk_within_memory(pending, advance)
            finally:
                staged.restore()
        return np.stack([self.known[item] for item in assignments])

    def execution(self) -> Json:
        """How values were measured: counts, engine, decoded weights, and what memory made it give up."""
        engine = self._engine
        return {
            **asdict(self.counts),
            "engine": engine.mode if engine else "not needed",
            "graphs": engine.recorded if engine else 0,
            "decoded_cache": self.bank.cache.reason,
            "decodings": self.bank.cache.decodings,
            "memory": list(self.bank.staged.given_up),
        }

    def _path(self, assignment: Assignment) -> tuple[Assignment, ...]:
        return block_states(self.costs.players, self.bank.staged.layout.block_count, assignment)

    def _walk_within_memory(
        self, pending: dict[tuple[Assignment, ...], Assignment], advance: Callable[[int], None]
    ) -> None:
        """Walk; where memory runs out give up speed step by step, and go on with what is left."""

        def walk() -> None:
            self._walk(sorted(path for path, item in pending.items() if item not in self.known), pending, advance)

        within_memory(walk, self._give_up_something)

    def _give_up_something(self) -> None:
        """The next cheaper way: no decoded weights and no graphs, then ever fewer windows at once.

        Raises:
            OutOfMemoryError: nothing is left to give up.
        """
        self._engine = None  # let go of its buffers before the next try
        cache, staged = self.bank.cache, self.bank.staged
        if cache.limit:
            cache.drop("memory ran out, so nothing is kept decoded")
            staged.given_up.append("decoded weights are not kept")
            free_memory(staged.placement.device)
        else:
            staged.shrink(self.text.windows)

    def _walk(
        self,
        paths: Sequence[tuple[Assignment, ...]],
        assignments: dict[tuple[Assignment, ...], Assignment],
        advance: Callable[[int], None],
    ) -> None:
        engine = self._start()
        states: list[Tensor] = [engine.start]
        previous = None
        waiting: deque[tuple[Assignment, Read]] = deque()
        for path in paths:
            start = 0 if previous is None else shared(previous, path)
            del states[start + 1 :]
            for block in range(start, len(path)):
                states.append(engine.block(block, path[block], states[-1]))
            self.counts.block_forwards += len(path) - start
            waiting.append((assignments[path], reading(engine.nll(states[-1]))))
            if len(waiting) > IN_FLIGHT.get(states[0].device.type, 0):
                self._keep(*waiting.popleft())
            advance(len(path) - start)
            previous = path
        while waiting:
            self._keep(*waiting.popleft())

    def _start(self) -> Engine:
        """Embed the text and choose how blocks are run; kept for later calls."""
        if self._engine is None:
            staged = self.bank.staged
            if not self.bank.cache.drops:
                self.bank.choose_cache(self.text.windows.numel())
            windows = self.text.windows.to(staged.placement.device)
            self._engine = engine_for(self.bank, staged.embed(self.text.windows), windows, self.teacher())
        return self._engine

    def _keep(self, assignment: Assignment, read: Read) -> None:
        nll = read()
        dtype = self.bank.staged.placement.dtype
        remedy = where_not_finite(dtype, "a larger width", "another --rounding")
        require_finite(f"coalition {encode(assignment)}", nll, remedy)
        self.counts.evaluations += 1
        self.known[assignment] = nll
        if self.log is not None:
            self.log.append({"assignment": encode(assignment), "nll": nll})


def values_of(records: Iterable[Json], key: str = "nll") -> Values:
    """The values that a log's records hold under a name."""
    return {decode(record["assignment"]): np.asarray(record[key], dtype=np.float64) for record in records}


def require_finite(whose: str, nll: NDArray[np.float64], remedy: str) -> None:
    """Refuse a loss that is NaN or infinite.

    Raises:
        NumericError: naming whose it is and the first windows.
    """
    bad = np.flatnonzero(~np.isfinite(nll))
    if len(bad):
        raise NumericError(f"the loss of {whose} is not finite on windows {bad[:8].tolist()}", remedy)


def reading(values: Tensor) -> Read:
    """Start copying to the host; what comes back waits for this copy alone, not for work queued after it."""
    host, ready = to_host(values)

    def read() -> NDArray[np.float64]:
        if ready is not None:
            ready.synchronize()
        return np.asarray(host.numpy(), dtype=np.float64)

    return read


def full_precision_nll(
    staged: StagedModel, calibration: Windows, teacher: Float[Tensor, "windows tokens hidden"] | None = None
) -> NDArray[np.float64]:
    """NLL per window of the checkpoint's own weights.

    Args:
        teacher: `full_precision_hidden` of these windows, where its predictions are the labels.

    Raises:
        NumericError: it is NaN or infinite; the windows are named.
    """
    staged.restore()
    if teacher is not None:
        nll = own_nll(staged, teacher, calibration.windows)
    else:
        with progress(FULL_PRECISION, len(calibration.windows), "windows") as advance:
            nll = staged.window_nll(calibration.windows, advance)
    require_finite("the checkpoint's own weights", nll, where_not_finite(staged.placement.dtype))
    return nll


@torch.inference_mode()
def own_nll(
    staged: StagedModel, teacher: Float[Tensor, "windows tokens hidden"], windows: Int[Tensor, "windows tokens"]
) -> NDArray[np.float64]:
    """Entropy per window of a teacher, nats per token, with its own head in place; no block is run."""
    device, pairs = staged.placement.device, list(zip(teacher.split(1), windows.split(1), strict=True))

    def work() -> list[NDArray[np.float64]]:
        return [staged.device_nll(own.to(device), part, own).cpu().numpy() for own, part in pairs]

    return np.concatenate(staged.within_memory(windows, work))


def naive_values(bank: WeightBank, calibration: Windows, assignments: Sequence[Assignment]) -> NDArray[np.float64]:
    """Mean NLL of each assignment by whole-model forward passes: the reference that `MeasuredGame` must equal."""
    found = []
    staged = bank.staged
    with torch.inference_mode():
        for assignment in assignments:
            bank.put_all(assignment)
            losses = [
                float(staged.model(input_ids=part, labels=part, use_cache=False).loss)
                for part in calibration.windows.to(staged.placement.device).split(4)
            ]
            sizes = [len(part) for part in calibration.windows.split(4)]
            found.append(float(np.average(losses, weights=sizes)))
    staged.restore()
    return np.asarray(found)
