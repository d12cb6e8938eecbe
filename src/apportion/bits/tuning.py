"""The scales of a whole plan tuned together, so that the rounded model predicts as the full-precision one does.

Codes stay as the rounding left them. Every group's scale is multiplied by exp(g); the gains g start at zero and
descend (Adam) the cross-entropy to the full-precision model's predictions over calibration windows. Some windows
are kept aside: the state of least loss there is kept, the start included, so that tuning cannot make a plan worse
where it is judged. Bytes do not change.

Source: EfficientQAT (arXiv 2407.11062) trains step sizes end to end as its second phase, on the text's own tokens.
Ours: signed scales as gains in the exponent, soft labels, and the choice of the state on windows kept aside.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor
from torch.func import functional_call

from apportion.bits.model import StagedModel, token_nll
from apportion.bits.rounding import Rounded
from apportion.bits.rounding.grid import FORMAT, GridWeight
from apportion.core.errors import InputError
from apportion.core.progress import progress

RATE = 0.01  # of Adam, in log gain
WARM_STEPS = 10
BATCH_TOKENS = 2048
KEPT_SHARE = 8  # one window of so many is kept aside
CHECKS = 4  # looks at the windows kept aside
Gains = dict[str, Float[Tensor, "rows groups"]]


@dataclass(frozen=True)
class Tuned:
    """A plan's weights after tuning.

    Attributes:
        rounded: as the plan was written, with other scales. steps: after how many steps they were best, 0 if never
            better than untuned.
        before, after: cross-entropy to full precision on the windows kept aside, nats per token.
    """

    rounded: Mapping[str, GridWeight]
    steps: int
    before: float
    after: float


def require_tunable(rounding: str, form: str, steps: int) -> None:
    """Refuse to tune what has no plain scales.

    Raises:
        InputError: the format is another one, or the number of steps is negative.
    """
    if steps < 0:
        raise InputError(f"--tune {steps}: expected 0 (not at all) or a number of steps, e.g. 100")
    if steps and form != FORMAT:
        raise InputError(f"--tune: {rounding} has no plain scales to tune", "round with nearest or gptq")


def tune(
    staged: StagedModel,
    rounded: Mapping[str, Rounded],
    windows: Int[Tensor, "windows tokens"],
    steps: int,
    seed: int = 0,
) -> Tuned:
    """Tune the scales of all linears for a number of steps.

    Args:
        rounded: every linear's weight, by module path.
        windows: calibration text, at least two windows.

    Raises:
        InputError: fewer than two windows.

    Cost: `steps` forward and backward passes over BATCH_TOKENS tokens, and CHECKS + 1 over the windows kept aside.
    The checkpoint's own weights are in place before and after.
    """
    if len(windows) < 2:
        raise InputError("--tune: needs at least two calibration windows", "raise --rounding-windows")
    aside = max(1, len(windows) // KEPT_SHARE)
    kept, taught = windows[-aside:], windows[:-aside]
    start = {path: item for path, item in rounded.items() if isinstance(item, GridWeight)}
    assert len(start) == len(rounded), "tuning was asked for weights that are not on the grid"
    staged.restore()
    kept_teacher, teacher = staged.last_hidden(kept), staged.last_hidden(taught)
    before = loss_of(staged, start, kept, kept_teacher)
    best = Tuned(start, 0, before, before)
    looks = {steps * look // CHECKS for look in range(1, CHECKS + 1)}
    with progress("tuning scales", steps, "steps") as advance:
        for step, gains in enumerate(descent(staged, start, taught, teacher, steps, seed), start=1):
            advance()
            if step in looks:
                state = {path: scaled(item, gains[path]) for path, item in start.items()}
                loss = loss_of(staged, state, kept, kept_teacher)
                if loss < best.after:
                    best = Tuned(state, step, before, loss)
    return best


def descent(
    staged: StagedModel,
    start: Mapping[str, GridWeight],
    windows: Int[Tensor, "windows tokens"],
    teacher: Float[Tensor, "windows tokens hidden"],
    steps: int,
    seed: int,
) -> Iterator[Gains]:
    """The log gains after every step; the rate warms up and falls to zero."""
    device = torch.device(staged.placement.device)
    weights = {path: (item.codes.to(device), item.scale.to(device).float()) for path, item in start.items()}
    gains: Gains = {path: torch.zeros_like(scale).requires_grad_() for path, (_, scale) in weights.items()}
    optimizer = torch.optim.Adam(gains.values(), lr=RATE, betas=(0.9, 0.95))
    size = max(1, BATCH_TOKENS // windows.shape[1])
    for step, chosen in enumerate(batches(len(windows), size, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_STEPS) * (1 - step / steps)
        part = windows[chosen].to(device)
        with torch.no_grad():
            labels = staged.logits(teacher[chosen, :-1]).float().softmax(-1)
        with torch.enable_grad():
            put = {
                f"{path}.weight": decoded(codes, scale * gains[path].exp(), staged.compute_dtype)
                for path, (codes, scale) in weights.items()
            }
            logits = functional_call(staged.model, put, (part,), {"use_cache": False}).logits[:, :-1]
            loss = token_nll(logits, labels).mean()
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
    return replace(item, scale=scale.to(item.scale.device))


@torch.inference_mode()
def loss_of(
    staged: StagedModel,
    weights: Mapping[str, GridWeight],
    windows: Int[Tensor, "windows tokens"],
    teacher: Float[Tensor, "windows tokens hidden"],
) -> float:
    """Mean cross-entropy to the teacher with these weights in place."""
    try:
        for path, item in weights.items():
            weight = item.dequantize(staged.compute_dtype).to(staged.placement.device)
            staged.model.get_submodule(path).weight.data = weight
        return float(staged.window_nll(windows, teacher=teacher).mean())
    finally:
        staged.restore()
