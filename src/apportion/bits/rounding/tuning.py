"""A whole plan tuned so that the rounded model predicts as the full-precision one does: `--tune`, `--tune-scales`.

Scales alone, or codes and scales together. Codes are learned block by block first (`blockwise`: memory of one block)
and then end to end (`distil`), where memory allows; where it does not, the result says so and scales follow alone.
Every eighth window is kept aside: the state of least cross-entropy there is kept, the start included. Bytes do not
change.

Source: EfficientQAT (arXiv 2407.11062), blocks first and then step sizes end to end, on the text's own tokens. Ours:
signed scales as gains in the exponent, codes end to end too, soft labels, the choice of the state on windows aside.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.rounding.blockwise import Blockwise
from apportion.bits.rounding.descent import Micro, batches, descend
from apportion.bits.rounding.distil import WEIGHT_BYTES, predictions_gradient
from apportion.bits.rounding.latent import Latents, Make, Start, StraightThrough
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.formats import COMPRESSED_TENSORS, Format, GridWeight, Packed
from apportion.models.staged import StagedModel

BATCH_TOKENS = {"cpu": 2048, "cuda": 4096}
KEPT_SHARE = 8  # one window of so many is kept aside
CHECKS = 4  # looks at the windows kept aside
BLOCK_STEPS = 128  # of each block, before all are learned end to end
MEMORY_SHARE = 0.6  # of what is free may go to learning; the rest is for activations


@dataclass(frozen=True)
class Tuned:
    """A plan's weights after tuning.

    Attributes:
        packed: as the plan was written, with other scales (and codes).
        steps: after how many steps end to end they were best; 0 is before the first.
        before, after: cross-entropy to full precision on the windows kept aside, nats per token.
        blocks: the same after learning block by block; None where that was not asked for.
        learned: `scales`, `codes and scales`, or what memory allowed of it and why.
        batch: windows of a forward pass, fewer than asked for where memory ran out.
        moved: share of the codes that changed.
    """

    packed: Mapping[str, GridWeight]
    steps: int
    before: float
    after: float
    blocks: float | None = None
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
        codes: whether codes are learned too. block_steps: of each block before that; 0 leaves it out.
    """

    windows: Int[Tensor, "windows tokens"]
    teacher: Float[Tensor, "windows tokens hidden"]
    kept: Int[Tensor, "kept tokens"]
    kept_teacher: Float[Tensor, "kept tokens hidden"]
    steps: int
    seed: int
    codes: bool = False
    block_steps: int = BLOCK_STEPS


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


def tune(staged: StagedModel, rounded: Mapping[str, Packed], lesson: Lesson) -> Tuned:
    """Tune scales, or codes and scales, of all linears.

    Args:
        rounded: every linear's weight, by module path.

    Cost: `steps` forward and backward passes over BATCH_TOKENS tokens, and CHECKS + 1 over the windows kept aside; with
    codes as many tokens `block_steps` times through each block first. The checkpoint's own weights are in place before
    and after.
    """
    start = {path: item for path, item in rounded.items() if isinstance(item, GridWeight)}
    assert len(start) == len(rounded), "tuning was asked for weights that are not on the grid"
    before = loss_of(staged, start, lesson)
    best = Tuned(start, 0, before, before)
    if lesson.codes and lesson.block_steps:
        walk = Blockwise(staged, lesson.block_steps, batch_of(staged, lesson.windows), lesson.seed, StraightThrough)
        blocks = walk.learn(start, lesson.windows)
        best = better(staged, best, blocks, 0, lesson)
        best = replace(best, blocks=loss_of(staged, blocks, lesson))
    make, learned = end_to_end(staged, start, lesson.codes)
    micro = Micro(batch_of(staged, lesson.windows), batch_of(staged, lesson.windows))
    looks = {lesson.steps * look // CHECKS for look in range(1, CHECKS + 1)}
    with progress(f"tuning {learned.split(':')[0]}", lesson.steps, "steps") as advance:
        for step, latents in enumerate(descent(staged, best.packed, lesson, make, micro), start=1):
            advance()
            if step in looks:
                best = better(staged, best, latents.found(), step, lesson)
    return replace(best, learned=learned, batch=micro.windows, moved=moved_share(start, best.packed))


def better(staged: StagedModel, best: Tuned, found: Mapping[str, GridWeight], step: int, lesson: Lesson) -> Tuned:
    """The state of less loss on the windows kept aside."""
    loss = loss_of(staged, found, lesson)
    return replace(best, packed=found, steps=step, after=loss) if loss < best.after else best


def end_to_end(staged: StagedModel, start: Mapping[str, GridWeight], codes: bool) -> tuple[Make, str]:
    """What is learned end to end, and why: codes need WEIGHT_BYTES of memory for each weight."""
    if not codes:
        return scales_alone, "scales"
    needed = WEIGHT_BYTES * sum(math.prod(item.shape) for item in start.values())
    free = int(MEMORY_SHARE * free_bytes(staged.placement.device))
    if needed <= free:
        return StraightThrough, "codes and scales"
    reason = f"learning codes end to end needs {needed:,} bytes, {free:,} may be taken"
    return scales_alone, f"codes block by block, scales end to end: {reason}"


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


def descent(
    staged: StagedModel, start: Mapping[str, GridWeight], lesson: Lesson, make: Make, micro: Micro
) -> Iterator[Latents]:
    """The codes and scales after every step end to end."""
    device = staged.placement.device
    latents = Latents(start, staged.originals, device, make)

    def gradient(weights: dict[str, Tensor], chosen: Tensor, share: float) -> Tensor:
        teacher = lesson.teacher[chosen.to(lesson.teacher.device)].to(device)
        return predictions_gradient(staged, weights, lesson.windows[chosen].to(device), teacher, share)

    size = min(micro.asked, len(lesson.windows))
    chosen = batches(len(lesson.windows), size, lesson.steps, lesson.seed)
    for _ in descend(latents, gradient, chosen, lesson.steps, staged.compute_dtype, micro):
        yield latents


def moved_share(before: Mapping[str, GridWeight], after: Mapping[str, GridWeight]) -> float:
    """Share of the codes that changed."""
    changed = sum(int((item.codes != after[path].codes).sum()) for path, item in before.items())
    return changed / max(1, sum(math.prod(item.shape) for item in before.values()))


@torch.inference_mode()
def loss_of(staged: StagedModel, weights: Mapping[str, GridWeight], lesson: Lesson) -> float:
    """Mean cross-entropy to full precision on the windows kept aside, with these weights in place."""
    with staged.in_place(weights):
        return float(staged.window_nll(lesson.kept, teacher=lesson.kept_teacher).mean())
