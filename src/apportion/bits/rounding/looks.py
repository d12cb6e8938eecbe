"""Looks at a descent: the best state so far on the windows kept aside, kept on disk for a run that is killed."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from apportion.bits.rounding.descent import Descent
from apportion.bits.rounding.kept import Kept, packed_from, packed_tensors
from apportion.bits.rounding.lesson import Lesson, loss_of
from apportion.core.artifact import Json
from apportion.formats import COMPRESSED_TENSORS, GridWeight
from apportion.models.staged import StagedModel
from apportion.models.text import Windows

LOOKS = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the steps: after each a look at the windows kept aside
STATE = "tuning"
GAINS = "gains in codes, of scales kept with them"  # what a state's gains mean: in earlier versions another thing
KEEP_BYTES_S = 2.5e8  # bytes a second of copying, digest and disk: 17 GB (1.3 billion weights) took a minute
KEEP_SHARE = 0.2  # of the time since the state was kept last may go to keeping it


@dataclass(frozen=True)
class Tuned:
    """A plan's weights after tuning.

    Attributes:
        packed: as the plan was written, with other scales (and codes).
        steps: after how many steps they were best; 0 is before the first.
        before, after: cross-entropy to full precision on the windows kept aside, nats per token.
        looks: steps, and that cross-entropy after them, better or not.
        slowed: steps after which that was no better than before the first, or the loss not finite: it went back there
            to the best state, and on at a fifth of the rates.
        learned: `scales`, `codes and scales`, or what memory allowed of it and why.
        batch: windows of a forward pass, fewer than asked for where memory ran out.
        moved: share of the codes that changed.
        own: windows that the model wrote itself to learn from, beside the text's.
        execution: `recorded` steps (a CUDA graph), `plain` ones, or why they were plain where they could be recorded;
            and whether full precision was asked anew at every step, for want of memory.
        diverged: the last step, where the loss was not finite there; None where it was.
    """

    packed: Mapping[str, GridWeight]
    steps: int
    before: float
    after: float
    looks: tuple[tuple[int, float], ...] = ()
    slowed: tuple[int, ...] = ()
    learned: str = "scales"
    batch: int = 0
    moved: float = 0.0
    own: int = 0
    execution: str = "plain"
    diverged: int | None = None


class Looks:
    """The best state so far on the windows kept aside, and what a killed run needs to go on.

    Attributes:
        best: the start, until a look is better. steps: after which ones to look.
        goes_back: where a look is no better than the start, to the best state, and on more slowly.
    """

    def __init__(
        self,
        staged: StagedModel,
        lesson: Lesson,
        start: Mapping[str, GridWeight],
        descent: Descent,
        kept: Kept | None,
    ) -> None:
        self.staged, self.lesson, self.start, self.descent, self.kept = staged, lesson, start, descent, kept
        self.steps = {max(1, round(lesson.steps * share)) for share in LOOKS}
        self.goes_back = True
        self.since = time.monotonic()
        piece = None if kept is None else kept.load(STATE)
        if piece is None:
            before = self.found_aside(start)
            self.best = Tuned(start, 0, before, before)
        else:
            self.best = self.resume(*piece)

    def found_aside(self, items: Mapping[str, GridWeight]) -> float:
        """Cross-entropy on the windows kept aside with these weights, nats per token."""
        return loss_of(self.staged, items, self.lesson.kept, self.lesson.kept_teacher)

    def resume(self, tensors: Mapping[str, Tensor], told: Json) -> Tuned:
        """The best state of a killed run; the descent goes on where that one looked last."""
        moving = {name.removeprefix("now/"): item for name, item in tensors.items() if name.startswith("now/")}
        self.descent.load(moving, told["step"])
        slowed = tuple(int(step) for step in told.get("slowed", ()))
        for step in slowed:
            self.descent.slow_down(step)
        saved = {name.removeprefix("best/"): item for name, item in tensors.items() if name.startswith("best/")}
        shapes = {path: item.shape for path, item in self.start.items()}
        widths = {path: item.width for path, item in self.start.items()}
        packed = packed_from(saved, COMPRESSED_TENSORS, shapes, widths) if saved else self.start
        grid = {path: item for path, item in packed.items() if isinstance(item, GridWeight)}
        looks = tuple((int(step), float(loss)) for step, loss in told.get("looks", ()))
        return Tuned(grid, told["steps"], told["before"], told["after"], looks, slowed)

    def take(self, step: int) -> None:
        """Look: keep the state if it is better than all before, and what is needed to go on from here."""
        found = self.descent.found()
        loss = self.found_aside(found)
        if math.isfinite(loss):
            self.best = replace(self.best, looks=(*self.best.looks, (step, loss)))
        if loss < self.best.after:
            self.best = replace(self.best, packed=found, steps=step, after=loss)
        del found
        worthless = self.descent.settled and not loss < self.best.before
        if worthless and self.goes_back and step < self.lesson.steps:
            self.go_back(step)
        if self.kept is not None:
            self.keep(self.kept, step)

    def go_back(self, step: int) -> None:
        """To the best state, and on more slowly."""
        self.descent.go_back(self.best.packed, self.staged.originals)
        self.best = replace(self.best, slowed=(*self.best.slowed, step))

    def keep(self, kept: Kept, step: int) -> None:
        """Keep the best state and, until the last step, what is needed to go on; not where that takes longer than
        KEEP_SHARE of what a killed run would have to do again."""
        best = self.best.packed if self.best.steps else {}
        now = self.descent.tensors() if step < self.lesson.steps else {}
        size = sum(item.nbytes for item in now.values()) + sum(map(packed_bytes, best.values()))
        if now and size / KEEP_BYTES_S > KEEP_SHARE * (time.monotonic() - self.since):
            return
        tensors = {f"best/{name}": item for name, item in packed_tensors(best).items()}
        tensors |= {f"now/{name}": item for name, item in now.items()}
        told: Json = {name: getattr(self.best, name) for name in ("steps", "before", "after", "looks", "slowed")}
        told["step"] = step
        kept.save(STATE, tensors, told)
        self.since = time.monotonic()


def packed_bytes(item: GridWeight) -> float:
    """Bytes that a weight is kept in, before it is packed: that alone takes seconds for a billion weights."""
    return math.prod(item.shape) * item.width.bits / 8 + item.scale.nbytes


def kept_in(folder: Path, staged: StagedModel, start: Mapping[str, GridWeight], lesson: Lesson, learned: str) -> Kept:
    """Where a tuning run keeps its state, and all that it depends on.

    Not on the very words that the model wrote itself, nor on how much memory was free: both may differ when a killed
    run goes on, and what it learned is as good.
    """
    given = lesson.windows[: len(lesson.windows) - lesson.own]
    digest = sha256()
    for path, item in start.items():
        digest.update(f"{path} {item.width.name}\n".encode())
        for tensor in (item.codes, item.scale.view(torch.uint8)):
            digest.update(tensor.cpu().contiguous().numpy().data)
    depends = {
        "model": staged.digest,
        "placement": [staged.placement.device.split(":")[0], staged.placement.dtype],
        "start": digest.hexdigest(),
        "windows": [Windows(windows, "").digest for windows in (given, lesson.kept)],
        "lesson": [lesson.steps, lesson.seed, lesson.own, learned.split(":")[0], GAINS],
    }
    return Kept(folder, depends)
