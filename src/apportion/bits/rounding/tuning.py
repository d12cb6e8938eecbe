"""The scales of a whole plan tuned together, so that the rounded model predicts as the full-precision one does.

Codes stay as the rounding left them. Every group's scale is multiplied by exp(g); the gains g start at zero and
descend (Adam) the cross-entropy to the full-precision model's predictions over calibration windows. Every eighth
window is kept aside: the state of least loss there is kept, the start included. Bytes do not change.

Source: EfficientQAT (arXiv 2407.11062) trains step sizes end to end as its second phase, on the text's own tokens.
Ours: signed scales as gains in the exponent, soft labels, and the choice of the state on windows kept aside.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor
from torch.func import functional_call

from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.formats import COMPRESSED_TENSORS, Format, GridWeight, Packed
from apportion.models.staged import StagedModel, token_nll

RATE = 0.01  # of Adam, in log gain
WARM_STEPS = 10
BATCH_TOKENS = 2048
KEPT_SHARE = 8  # one window of so many is kept aside
CHECKS = 4  # looks at the windows kept aside
LOSS_SCALE = {torch.float16: 1024.0}  # gradients of single weights underflow in float16; Adam divides it out
Gains = dict[str, Float[Tensor, "rows groups"]]


@dataclass(frozen=True)
class Tuned:
    """A plan's weights after tuning.

    Attributes:
        packed: as the plan was written, with other scales. steps: after how many steps they were best, 0 if never
            better than untuned.
        before, after: cross-entropy to full precision on the windows kept aside, nats per token.
    """

    packed: Mapping[str, GridWeight]
    steps: int
    before: float
    after: float


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
    """What scales are tuned on: the same for every plan of a model.

    Attributes:
        windows, teacher: text to learn from, and full precision's hidden states after the last block on it.
        kept, kept_teacher: the same of the windows kept aside. steps, seed: how long, and in what order.
    """

    windows: Int[Tensor, "windows tokens"]
    teacher: Float[Tensor, "windows tokens hidden"]
    kept: Int[Tensor, "kept tokens"]
    kept_teacher: Float[Tensor, "kept tokens hidden"]
    steps: int
    seed: int


def lesson_of(staged: StagedModel, windows: Int[Tensor, "windows tokens"], steps: int, seed: int = 0) -> Lesson:
    """Part a calibration text and ask full precision about it.

    Raises:
        InputError: fewer than two windows.
    """
    require_windows(windows)
    kept, taught = parted(windows, steps, seed)
    staged.restore()
    return Lesson(taught, staged.last_hidden(taught), kept, staged.last_hidden(kept), steps, seed)


def tune(staged: StagedModel, rounded: Mapping[str, Packed], lesson: Lesson) -> Tuned:
    """Tune the scales of all linears.

    Args:
        rounded: every linear's weight, by module path.

    Cost: `steps` forward and backward passes over BATCH_TOKENS tokens, and CHECKS + 1 over the windows kept aside.
    The checkpoint's own weights are in place before and after.
    """
    start = {path: item for path, item in rounded.items() if isinstance(item, GridWeight)}
    assert len(start) == len(rounded), "tuning was asked for weights that are not on the grid"
    before = loss_of(staged, start, lesson.kept, lesson.kept_teacher)
    best = Tuned(start, 0, before, before)
    looks = {lesson.steps * look // CHECKS for look in range(1, CHECKS + 1)}
    with progress("tuning scales", lesson.steps, "steps") as advance:
        for step, gains in enumerate(descent(staged, start, lesson), start=1):
            advance()
            if step in looks:
                state = {path: scaled(item, gains[path]) for path, item in start.items()}
                loss = loss_of(staged, state, lesson.kept, lesson.kept_teacher)
                if loss < best.after:
                    best = Tuned(state, step, before, loss)
    return best


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


def batch_of(windows: Int[Tensor, "windows tokens"]) -> int:
    """Windows of a step."""
    return max(1, BATCH_TOKENS // windows.shape[1])


def parted(
    windows: Int[Tensor, "windows tokens"], steps: int, seed: int
) -> tuple[Int[Tensor, "kept tokens"], Int[Tensor, "taught tokens"]]:
    """Every KEPT_SHARE-th window, at least one; and of the others as many as the steps can see."""
    aside = torch.arange(len(windows)) % KEPT_SHARE == KEPT_SHARE - 1
    aside[-1] |= not aside.any()
    left = windows[~aside]
    needed = min(len(left), steps * batch_of(windows))
    chosen = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))[:needed]
    return windows[aside], left[chosen.sort().values]


def descent(staged: StagedModel, start: Mapping[str, GridWeight], lesson: Lesson) -> Iterator[Gains]:
    """The log gains after every step; the rate warms up and falls to zero."""
    device = torch.device(staged.placement.device)
    weights = {path: (item.codes.to(device), item.scale.to(device).float()) for path, item in start.items()}
    gains: Gains = {path: torch.zeros_like(scale).requires_grad_() for path, (_, scale) in weights.items()}
    optimizer = torch.optim.Adam(gains.values(), lr=RATE, betas=(0.9, 0.95))
    for step, chosen in enumerate(batches(len(lesson.windows), batch_of(lesson.windows), lesson.steps, lesson.seed)):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_STEPS) * (1 - step / lesson.steps)
        part = lesson.windows[chosen].to(device)
        with torch.no_grad():
            labels = staged.logits(lesson.teacher[chosen, :-1]).float().softmax(-1)
        with torch.enable_grad():
            put = {
                f"{path}.weight": decoded(codes, scale * gains[path].exp(), staged.compute_dtype)
                for path, (codes, scale) in weights.items()
            }
            logits = functional_call(staged.model, put, (part,), {"use_cache": False}).logits[:, :-1]
            loss = token_nll(logits, labels).mean() * LOSS_SCALE.get(staged.compute_dtype, 1.0)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        yield {path: gain.detach() for path, gain in gains.items()}


def decoded(
    codes: Int8[Tensor, "rows columns"], scale: Float[Tensor, "rows groups"], dtype: torch.dtype
) -> Float[Tensor, "rows columns"]:
    """The weight as `GridWeight.dequantize` gives it, differentiable in the scales."""
    grouped = codes.view(*scale.shape, -1).to(dtype) * scale.to(dtype)[..., None]
    return grouped.view(codes.shape)


def batches(windows: int, size: int, steps: int, seed: int) -> Iterator[Int[Tensor, " size"]]:
    """Random windows, all of them once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.zeros(0, dtype=torch.long)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(windows, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def scaled(item: GridWeight, gain: Float[Tensor, "rows groups"]) -> GridWeight:
    """The weight with its scales multiplied, as its dtype stores them."""
    scale = (item.scale.to(gain).float() * gain.exp()).to(item.scale.dtype)
    return replace(item, scale=scale.to(item.scale.device), evidence={})


@torch.inference_mode()
def loss_of(
    staged: StagedModel,
    weights: Mapping[str, GridWeight],
    windows: Int[Tensor, "windows tokens"],
    teacher: Float[Tensor, "windows tokens hidden"],
) -> float:
    """Mean cross-entropy to the teacher with these weights in place."""
    with staged.in_place(weights):
        return float(staged.window_nll(windows, teacher=teacher).mean())
