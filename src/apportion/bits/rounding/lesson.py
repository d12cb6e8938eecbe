"""What a plan is tuned on: text, full precision's answers to it, and windows aside on which states are compared."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.core.errors import InputError
from apportion.formats import GridWeight
from apportion.models.staged import StagedModel

BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
KEPT_SHARE = 8  # one window of so many is kept aside


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


def loss_of(
    staged: StagedModel,
    weights: Mapping[str, GridWeight],
    windows: Int[Tensor, "windows tokens"],
    teacher: Float[Tensor, "windows tokens hidden"],
) -> float:
    """Mean cross-entropy to the teacher with these weights in place, nats per token."""
    with staged.in_place(weights):
        return float(staged.window_nll(windows, teacher=teacher).mean())
