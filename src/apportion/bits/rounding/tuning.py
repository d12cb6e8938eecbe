"""A whole plan tuned so that the rounded model predicts as the full-precision one does: `--tune`, `--tune-scales`.

Scales alone, or codes and scales together (`latent`), descend end to end the cross-entropy to full precision's
predictions (`distil`). Codes need memory; where it is missing, scales are tuned alone and the result says so. Every
eighth window is kept aside: the state of least cross-entropy there is kept, the start included. Bytes do not change.

Source: EfficientQAT (arXiv 2407.11062) trains step sizes end to end as its second phase, on the text's own tokens.
Ours: signed scales as gains in the exponent, codes end to end too, soft labels, the choice of the state on windows
aside. Learning block by block before that (as AutoRound and EfficientQAT do) gained nothing in the end at the rates
that were tried, and is not done; benchmarks/learners.py has it, and the other ways that lost.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.rounding.choice import MEMORY_SHARE
from apportion.bits.rounding.descent import Descent, Gradient, Micro, batches
from apportion.bits.rounding.distil import WEIGHT_BYTES, predictions_gradient
from apportion.bits.rounding.kept import Kept, packed_from, packed_tensors
from apportion.bits.rounding.latent import Latents, Make, Start, StraightThrough
from apportion.core.artifact import Json
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.formats import COMPRESSED_TENSORS, Format, GridWeight, Packed
from apportion.models.staged import StagedModel
from apportion.models.text import Windows

BATCH_TOKENS = {"cpu": 2048, "cuda": 4096}
KEPT_SHARE = 8  # one window of so many is kept aside
CHECKS = 4  # looks at the windows kept aside
STATE = "tuning"


@dataclass(frozen=True)
class Tuned:
    """A plan's weights after tuning.

    Attributes:
        packed: as the plan was written, with other scales (and codes).
        steps: after how many steps they were best; 0 is before the first.
        before, after: cross-entropy to full precision on the windows kept aside, nats per token.
        learned: `scales`, `codes and scales`, or what memory allowed of it and why.
        batch: windows of a forward pass, fewer than asked for where memory ran out.
        moved: share of the codes that changed.
    """

    packed: Mapping[str, GridWeight]
    steps: int
    before: float
    after: float
    learned: str = "scales"
    batch: int = 0
    moved: float = 0.0


def require_tunable(rounding: str, form: Format, steps: int) -> None:
    """Refuse to tune what has no plain scales.

    Raises:
        InputError: the format is another one, or the number of steps is negative.
    """
    if steps < 0:
        raise InputError(f"--tune {steps}: expected 0 (not at all) or a number of steps, e.g. 100")
    if steps and form is not COMPRESSED_TENSORS:
        raise InputError(f"--tune: {rounding} has no plain scales to tune", "round with nearest or gptq")


@dataclass(frozen=True)
class Lesson:
    """What a plan is tuned on: the same for every plan of a model.

    Attributes:
        windows, teacher: text to learn from, and full precision's hidden states after the last block on it.
        kept, kept_teacher: the same of the windows kept aside. steps, seed: how long, and in what order.
        codes: whether codes are learned too.
    """

    windows: Int[Tensor, "windows tokens"]
    teacher: Float[Tensor, "windows tokens hidden"]
    kept: Int[Tensor, "kept tokens"]
    kept_teacher: Float[Tensor, "kept tokens hidden"]
    steps: int
    seed: int
    codes: bool = False


def lesson_of(
    staged: StagedModel, windows: Int[Tensor, "windows tokens"], steps: int, seed: int = 0, *, codes: bool = False
) -> Lesson:
    """Part a calibration text and ask full precision about it.

    Args:
        codes: learn codes too, not scales alone.

    Raises:
        InputError: fewer than two windows.
    """
    require_windows(windows)
    kept, taught = parted(windows, steps, seed, batch_of(staged, windows))
    staged.restore()
    return Lesson(taught, staged.last_hidden(taught), kept, staged.last_hidden(kept), steps, seed, codes)


def tune(staged: StagedModel, rounded: Mapping[str, Packed], lesson: Lesson, folder: Path | None = None) -> Tuned:
    """Tune scales, or codes and scales, of all linears.

    Args:
        rounded: every linear's weight, by module path.
        folder: where the state is kept at every look; a run that was killed goes on from the last one.

    Raises:
        OutOfMemoryError: not even one window fits.

    Cost: `steps` forward and backward passes over BATCH_TOKENS tokens, and CHECKS + 1 over the windows kept aside.
    The checkpoint's own weights are in place before and after.
    """
    start = {path: item for path, item in rounded.items() if isinstance(item, GridWeight)}
    assert len(start) == len(rounded), "tuning was asked for weights that are not on the grid"
    make, learned = what_fits(staged, start, lesson.codes)
    size = min(batch_of(staged, lesson.windows), len(lesson.windows))
    descent = Descent(Latents(start, staged.originals, staged.placement.device, make), lesson.steps,
                      staged.compute_dtype, Micro(size, size))  # fmt: skip
    look = Looks(staged, lesson, start, descent, None if folder is None else kept_in(folder, staged, start, lesson))
    gradient = gradient_of(staged, lesson)
    with progress(f"tuning {learned.split(':')[0]}", lesson.steps, "steps", done=descent.done) as advance:
        for step, batch in enumerate(batches(len(lesson.windows), size, lesson.steps, lesson.seed), start=1):
            if step <= descent.done:
                continue
            descent.step(gradient, batch)
            advance()
            if step in look.steps:
                look.take(step)
    best = look.best
    return replace(best, learned=learned, batch=descent.micro.windows, moved=moved_share(start, best.packed))


def gradient_of(staged: StagedModel, lesson: Lesson) -> Gradient:
    """The gradient of the cross-entropy to full precision on the lesson's windows."""
    device = staged.placement.device

    def gradient(weights: dict[str, Tensor], chosen: Tensor, share: float) -> Tensor:
        teacher = lesson.teacher[chosen.to(lesson.teacher.device)].to(device)
        return predictions_gradient(staged, weights, lesson.windows[chosen].to(device), teacher, share)

    return gradient


class Looks:
    """The best state so far on the windows kept aside, and what a killed run needs to go on.

    Attributes:
        best: the start, until a look is better. steps: after which ones to look.
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
        self.steps = {lesson.steps * look // CHECKS for look in range(1, CHECKS + 1)}
        piece = None if kept is None else kept.load(STATE)
        if piece is None:
            before = loss_of(staged, start, lesson.kept, lesson.kept_teacher)
            self.best = Tuned(start, 0, before, before)
        else:
            self.best = self.resume(*piece)

    def resume(self, tensors: Mapping[str, Tensor], told: Json) -> Tuned:
        """The best state of a killed run; the descent goes on where that one looked last."""
        moving = {name.removeprefix("now/"): item for name, item in tensors.items() if name.startswith("now/")}
        self.descent.load(moving, told["step"])
        saved = {name.removeprefix("best/"): item for name, item in tensors.items() if name.startswith("best/")}
        shapes = {path: item.shape for path, item in self.start.items()}
        widths = {path: item.width for path, item in self.start.items()}
        packed = packed_from(saved, COMPRESSED_TENSORS, shapes, widths) if saved else self.start
        grid = {path: item for path, item in packed.items() if isinstance(item, GridWeight)}
        return Tuned(grid, told["steps"], told["before"], told["after"])

    def take(self, step: int) -> None:
        """Look: keep the state if it is better than all before, and what is needed to go on from here."""
        found = self.descent.latents.found()
        loss = loss_of(self.staged, found, self.lesson.kept, self.lesson.kept_teacher)
        if loss < self.best.after:
            self.best = replace(self.best, packed=found, steps=step, after=loss)
        if self.kept is not None:
            best = packed_tensors(self.best.packed) if self.best.steps else {}
            tensors = {f"now/{name}": item for name, item in self.descent.tensors().items()}
            tensors |= {f"best/{name}": item for name, item in best.items()}
            told = {"step": step, "steps": self.best.steps, "before": self.best.before, "after": self.best.after}
            self.kept.save(STATE, tensors, told)


def kept_in(folder: Path, staged: StagedModel, start: Mapping[str, GridWeight], lesson: Lesson) -> Kept:
    """Where a tuning run keeps its state, and all that it depends on."""
    digest = sha256()
    for path, item in start.items():
        digest.update(f"{path} {item.width.name}\n".encode())
        for tensor in (item.codes, item.scale.view(torch.uint8)):
            digest.update(tensor.cpu().contiguous().numpy().data)
    depends = {
        "model": staged.digest,
        "placement": [staged.placement.device.split(":")[0], staged.placement.dtype],
        "start": digest.hexdigest(),
        "windows": [Windows(windows, "").digest for windows in (lesson.windows, lesson.kept)],
        "lesson": [lesson.steps, lesson.seed, lesson.codes],
    }
    return Kept(folder, depends)


def what_fits(staged: StagedModel, start: Mapping[str, GridWeight], codes: bool) -> tuple[Make, str]:
    """What is learned, and why: codes need WEIGHT_BYTES of memory for each weight."""
    if not codes:
        return scales_alone, "scales"
    needed = WEIGHT_BYTES * sum(math.prod(item.shape) for item in start.values())
    free = int(MEMORY_SHARE * free_bytes(staged.placement.device))
    if needed <= free:
        return StraightThrough, "codes and scales"
    return scales_alone, f"scales: learning codes needs {needed:,} bytes, {free:,} may be taken"


def scales_alone(start: Start) -> StraightThrough:
    """Codes stay as they are."""
    return StraightThrough(start, position_rate=0)


def free_bytes(device: str) -> int:
    """Memory that is free on a device."""
    if torch.device(device).type == "cuda":
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + spare
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_windows(windows: Int[Tensor, "windows tokens"]) -> None:
    """Refuse a text of which nothing could be kept aside.

    Raises:
        InputError: fewer than two windows.
    """
    if len(windows) < 2:
        raise InputError(
            "--tune: the calibration text has fewer than two windows",
            "give a longer text or a smaller --window-tokens (or raise --windows where the model samples its own)",
        )


def batch_of(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> int:
    """Windows of a step."""
    return max(1, BATCH_TOKENS[torch.device(staged.placement.device).type] // windows.shape[1])


def parted(
    windows: Int[Tensor, "windows tokens"], steps: int, seed: int, batch: int
) -> tuple[Int[Tensor, "kept tokens"], Int[Tensor, "taught tokens"]]:
    """Every KEPT_SHARE-th window, at least one; and of the others as many as the steps can see."""
    aside = torch.arange(len(windows)) % KEPT_SHARE == KEPT_SHARE - 1
    aside[-1] |= not aside.any()
    left = windows[~aside]
    needed = min(len(left), steps * batch)
    chosen = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))[:needed]
    return windows[aside], left[chosen.sort().values]


def moved_share(before: Mapping[str, GridWeight], after: Mapping[str, GridWeight]) -> float:
    """Share of the codes that changed."""
    changed = sum(int((item.codes != after[path].codes).sum()) for path, item in before.items())
    return changed / max(1, sum(math.prod(item.shape) for item in before.values()))


def loss_of(
    staged: StagedModel,
    weights: Mapping[str, GridWeight],
    windows: Int[Tensor, "windows tokens"],
    teacher: Float[Tensor, "windows tokens hidden"],
) -> float:
    """Mean cross-entropy to the teacher with these weights in place, nats per token."""
    with staged.in_place(weights):
        return float(staged.window_nll(windows, teacher=teacher).mean())
