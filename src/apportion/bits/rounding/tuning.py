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
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from apportion.bits.rounding.choice import MEMORY_SHARE
from apportion.bits.rounding.descent import Descent, Micro, batches
from apportion.bits.rounding.distil import WEIGHT_BYTES, Predictions
from apportion.bits.rounding.latent import Latents, Make, StraightThrough, finer, position_rate
from apportion.bits.rounding.lesson import Lesson, batch_of
from apportion.bits.rounding.looks import Looks, Tuned, kept_in
from apportion.core.device import free_bytes
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.formats import COMPRESSED_TENSORS, Format, GridWeight, Packed
from apportion.models.staged import StagedModel

TUNING = "tuning"  # what its bar says
ANEW = "; full precision answers anew at every step, for want of memory"


def require_tunable(rounding: str, form: Format, steps: int) -> None:
    """Refuse to tune what has no plain scales.

    Raises:
        InputError: the format is another one, or the number of steps is negative.
    """
    if steps < 0:
        raise InputError(f"--tune {steps}: expected 0 (not at all) or a number of steps, e.g. 100")
    if steps and form is not COMPRESSED_TENSORS:
        raise InputError(f"--tune: {rounding} has no plain scales to tune", "round with nearest or gptq")


def tune(staged: StagedModel, rounded: Mapping[str, Packed], lesson: Lesson, folder: Path | None = None) -> Tuned:
    """Tune scales, or codes and scales, of all linears.

    Args:
        rounded: every linear's weight, by module path.
        folder: where the state is kept at every look; a run that was killed goes on from the last one.

    Raises:
        OutOfMemoryError: not even one window fits.

    Cost: `steps` forward and backward passes over BATCH_TOKENS tokens, and one more than LOOKS over the windows aside.
    The checkpoint's own weights are in place before and after.
    """
    start = {path: item for path, item in rounded.items() if isinstance(item, GridWeight)}
    assert len(start) == len(rounded), "tuning was asked for weights that are not on the grid"
    make, learned = what_fits(staged, start, lesson)
    size = min(batch_of(staged, lesson.windows), len(lesson.windows))
    descent = Descent(Latents(start, staged.originals, staged.placement.device, make), lesson.steps,
                      staged.compute_dtype, Micro(size))  # fmt: skip
    kept = None if folder is None else kept_in(folder, staged, start, lesson, learned)
    look = Looks(staged, lesson, start, descent, kept)
    task = Predictions(staged, lesson)
    with progress(TUNING, lesson.steps, f"steps of {learned.split(':')[0]}", done=descent.done) as advance:
        for step, batch in enumerate(batches(len(lesson.windows), size, lesson.steps, lesson.seed), start=1):
            if step <= descent.done:
                continue
            loss = descent.step(task, batch)
            advance()
            if step not in look.steps:
                continue
            if loss.isfinite():
                look.take(step)
            elif step < lesson.steps:
                look.go_back(step)
            else:
                look.best = replace(look.best, diverged=step)
    best = look.best
    return replace(
        best,
        learned=learned,
        batch=descent.micro.windows,
        moved=moved_share(start, best.packed),
        own=lesson.own,
        execution=descent.execution + (ANEW if lesson.teacher is None else ""),
    )


def what_fits(staged: StagedModel, start: Mapping[str, GridWeight], lesson: Lesson) -> tuple[Make, str]:
    """What is learned, and why: codes need WEIGHT_BYTES of memory for each weight."""
    weights = sum(math.prod(item.shape) for item in start.values())
    steps = max(1, lesson.steps)
    make = partial(StraightThrough, finer=finer(weights, steps))
    scales = partial(make, position_rate=0)
    if not lesson.codes:
        return scales, "scales"
    needed = WEIGHT_BYTES * weights
    free = int(MEMORY_SHARE * free_bytes(staged.placement.device))
    if needed <= free:
        return partial(make, position_rate=position_rate(steps)), "codes and scales"
    return scales, f"scales: learning codes needs {needed:,} bytes, {free:,} may be taken"


def moved_share(before: Mapping[str, GridWeight], after: Mapping[str, GridWeight]) -> float:
    """Share of the codes that changed."""
    changed = sum(int((item.codes != after[path].codes).sum()) for path, item in before.items())
    return changed / max(1, sum(math.prod(item.shape) for item in before.values()))
