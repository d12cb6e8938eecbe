"""The value of a plan for a file: mean KL from the original's predictions, with every matrix in its type.

Plans are evaluated as a trie: the embedding first, then the blocks in order, each with its own matrices, the output
head last. Neighbours in sorted order share the hidden states of their common prefix.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.game import Assignment, Values, encode, require_finite, values_of
from apportion.bits.gguf.bank import GgufBank
from apportion.core.arrays import NDArray
from apportion.core.device import where_not_finite
from apportion.core.log import AppendLog
from apportion.core.progress import Advance, progress
from apportion.models.embedded import Embedded
from apportion.models.loss import SETS
from apportion.models.text import Windows

PLANS = "plans"  # what its bar says
KEPT_BYTES = {"cpu": 1 << 30, "cuda": 16 << 30}  # of the original's predictions; beyond, its head is run each time
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


class FileGame:
    """Plans in, KL per window out; known values are not measured again.

    Args:
        bank: the model and its matrices in every type. text: on which values are measured.
        log: where values are appended as they come.

    Attributes:
        evaluations, block_forwards: what was computed by this process.
    """

    def __init__(self, bank: GgufBank, text: Windows, log: AppendLog | None = None) -> None:
        self.bank, self.log = bank, log
        self.staged = bank.staged
        self.costs = bank.ladders.costs
        self.windows = text.windows.to(self.staged.placement.device)
        self.evaluations = self.block_forwards = 0
        self.known: Values = values_of(log.records if log else [], "kl")
        bank.restore()
        self.teacher = self.staged.last_hidden(self.windows)
        self.embedded: Embedded = self.staged.embed(self.windows)
        self.stages = [stage_of(name, self.staged.layout.block_count) for name in bank.ladders.names]
        self._starts: dict[tuple[int, ...], Tensor] = {}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.kept_bytes = KEPT_BYTES.get(self.windows.device.type, 0)

    def values(self, assignments: Sequence[Assignment]) -> Float[NDArray[np.float64], "assignments windows"]:
        """Mean KL per window in nats per token, one row for each plan.

        Where memory runs out, the original's predictions are kept no more and fewer windows are run at once; what
        was measured before stays.

        Raises:
            NumericError: a value is NaN or infinite. OutOfMemoryError: one window does not fit.
        """
        pending = {self.path(item): item for item in assignments if item not in self.known}
        try:
            with progress(PLANS, len(pending), "plans") as advance:
                self.staged.within_memory(self.windows, lambda: self._measure(pending, advance))
        finally:
            self.bank.restore()
        return np.stack([self.known[item] for item in assignments])

    def _measure(self, pending: Mapping[tuple[Assignment, ...], Assignment], advance: Advance) -> None:
        """All that is pending and not known yet."""
        self.bank.restore()
        previous: tuple[Assignment, ...] = ()
        states: list[Tensor] = []
        try:
            self.embedded = self.staged.embed(self.windows)
            for path in sorted(path for path, item in pending.items() if item not in self.known):
                keep = common(previous, path)
                states = self._walk(path, states[:keep], keep)
                self._keep(pending[path], self._kl(states[-1], path))
                previous = path
                advance()
        except RuntimeError:  # memory, for one
            self._starts.clear()
            self._kept.clear()
            self.kept_bytes = 0
            raise

    def path(self, assignment: Assignment) -> tuple[Assignment, ...]:
        """Rungs of the embedding, of each block's matrices, and of the head."""
        blocks = self.staged.layout.block_count
        inside: list[list[int]] = [[] for _ in range(blocks + 2)]
        for stage, rung in zip(self.stages, assignment, strict=True):
            inside[stage].append(rung)
        return tuple(map(tuple, inside))

    @torch.inference_mode()
    def _walk(self, path: tuple[Assignment, ...], states: list[Tensor], first: int) -> list[Tensor]:
        """Hidden states after each stage but the head's; `states` are those of the prefix that is known."""
        for stage in range(first, len(path) - 1):
            self._put(stage, path[stage])
            states.append(self._start(path[0]) if stage == 0 else self._block(stage - 1, states[-1]))
        return states

    def _put(self, stage: int, rungs: Assignment) -> None:
        own = [player for player, at in enumerate(self.stages) if at == stage]
        for player, rung in zip(own, rungs, strict=True):
            self.bank.put(player, rung)

    def _start(self, rungs: Assignment) -> Tensor:
        """Embedded text; of every type of the embedding once."""
        if rungs not in self._starts:
            self._starts[rungs] = self.staged.embed_anew(self.windows).hidden
        return self._starts[rungs]

    def _block(self, block: int, hidden: Tensor) -> Tensor:
        self.block_forwards += 1
        return self.staged.run_block(block, hidden, self.embedded)

    @torch.inference_mode()
    def _kl(self, hidden: Tensor, path: tuple[Assignment, ...]) -> NDArray[np.float64]:
        """Mean KL of each window, as many tokens of logits at a time as `head_bytes` holds."""
        count, length = self.windows.shape
        self._put(0, path[0])  # a tied embedding is the head
        self._put(len(path) - 1, path[-1])
        flat, theirs = hidden[:, :-1].flatten(0, 1), self.teacher[:, :-1].flatten(0, 1)
        vocabulary = int(self.staged.model.config.get_text_config().vocab_size)
        rows = max(1, self.staged.head_bytes // (SETS * 4 * vocabulary))
        found = []
        for start in range(0, len(flat), rows):
            part = slice(start, start + rows)
            p, minus_entropy = self._teacher(start, theirs[None, part])
            log_q = self.staged.logits(flat[None, part])[0].float().log_softmax(-1)
            found.append(minus_entropy - (p * log_q).sum(-1))
        kl = torch.cat(found).double().view(count, length - 1).mean(1)
        return np.asarray(kl.cpu().numpy(), dtype=np.float64)

    def _teacher(self, start: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The original's probabilities of some tokens, and their sums of p log p."""
        if start in self._kept:
            return self._kept[start]
        log_p = self.bank.original_logits(hidden)[0].float().log_softmax(-1)
        p = log_p.exp()
        found = (p, (p * log_p).sum(-1))
        held = sum(kept.nbytes for kept, _ in self._kept.values())
        if held + p.nbytes <= self.kept_bytes:
            self._kept[start] = found
        return found

    def _keep(self, assignment: Assignment, kl: NDArray[np.float64]) -> None:
        remedy = where_not_finite(self.staged.placement.dtype, "larger --types")
        require_finite(f"plan {encode(assignment)}", kl, remedy)
        self.evaluations += 1
        self.known[assignment] = kl
        if self.log is not None:
            self.log.append({"assignment": encode(assignment), "kl": kl})


def stage_of(name: str, blocks: int) -> int:
    """When a matrix is used: 0 the embedding, 1 to `blocks` the blocks, then the head.

    >>> stage_of("token_embd.weight", 4), stage_of("blk.3.attn_q.weight", 4), stage_of("output.weight", 4)
    (0, 4, 5)
    """
    if name == EMBEDDING:
        return 0
    return blocks + 1 if name == OUTPUT else int(name.split(".")[1]) + 1


def common(first: tuple[Assignment, ...], second: tuple[Assignment, ...]) -> int:
    """Stages before the head's that two paths share."""
    for depth, (one, other) in enumerate(zip(first[:-1], second[:-1], strict=False)):
        if one != other:
            return depth
    return max(0, min(len(first), len(second)) - 1)
