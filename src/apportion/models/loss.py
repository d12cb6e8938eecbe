"""The loss that everything here is measured by."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SETS = 3  # of logits with a teacher: the model's, the teacher's, their softmax


def token_nll(
    logits: Float[Tensor, "batch tokens vocabulary"],
    targets: Int[Tensor, "batch tokens"] | Float[Tensor, "batch tokens vocabulary"],
) -> Float[Tensor, "batch tokens"]:
    """Negative log-likelihood of each target (or mean over a distribution of them), in nats, in float32."""
    flat = logits.float().flatten(0, 1)
    return nn.functional.cross_entropy(flat, targets.flatten(0, 1), reduction="none").view(logits.shape[:2])


def mean_nll(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "windows tokens hidden"],
    windows: Int[Tensor, "windows tokens"],
    rows: int,
    teacher: Float[Tensor, "windows tokens hidden"] | None,
    teacher_logits_of: Callable[[Tensor], Tensor],
) -> Float[Tensor, " windows"]:
    """Mean loss of each window, on the device of the hidden states; see `StagedModel.device_nll`.

    Args:
        logits_of: the head in place. rows: of logits at once, with a teacher fewer tokens.
        teacher_logits_of: the teacher's own head.
    """
    count, length = windows.shape
    rows = max(1, rows if teacher is None else rows // SETS)
    targets = windows.to(hidden.device)[:, 1:]
    sums = torch.zeros(count, dtype=torch.float64, device=hidden.device)
    per_chunk, span = max(1, rows // (length - 1)), min(length - 1, rows)
    for first in range(0, count, per_chunk):
        for start in range(0, length - 1, span):
            stop = min(start + span, length - 1)
            chunk = slice(first, first + per_chunk)
            logits = logits_of(hidden[chunk, start:stop])
            labels = targets[chunk, start:stop]
            if teacher is not None:
                labels = teacher_logits_of(teacher[chunk, start:stop].to(hidden)).float().softmax(-1)
            sums[chunk] += token_nll(logits, labels).double().sum(1)
    return sums / (length - 1)
