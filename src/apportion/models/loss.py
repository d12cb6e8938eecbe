"""The loss that everything here is measured by."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from apportion.core.launch import has_kernels

SETS = 3  # of logits with a teacher: the model's, the teacher's, their softmax (which kernels do not make)


@torch.no_grad()
def token_nll(
    logits: Float[Tensor, "batch tokens vocabulary"], targets: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Negative log-likelihood of each target, in nats, in float32."""
    flat, labels = logits.flatten(0, 1), targets.flatten(0, 1)
    if has_kernels(logits.device):
        from apportion.models.loss_kernels import text_nll

        return text_nll(flat, labels).view(logits.shape[:2])
    return nn.functional.cross_entropy(flat.float(), labels, reduction="none").view(logits.shape[:2])


@torch.no_grad()
def teacher_nll(
    logits: Float[Tensor, "batch tokens vocabulary"], wanted: Float[Tensor, "batch tokens vocabulary"]
) -> Float[Tensor, "batch tokens"]:
    """Mean negative log-likelihood over the distribution of the wanted logits, in nats, in float32."""
    flat, full = logits.flatten(0, 1), wanted.flatten(0, 1)
    if has_kernels(logits.device):
        from apportion.models import loss_kernels

        return loss_kernels.teacher_nll(flat, full).view(logits.shape[:2])
    labels = full.float().softmax(-1)
    return nn.functional.cross_entropy(flat.float(), labels, reduction="none").view(logits.shape[:2])


@torch.no_grad()
def teacher_slope(
    logits: Float[Tensor, "batch tokens vocabulary"], wanted: Float[Tensor, "batch tokens vocabulary"], factor: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch tokens vocabulary"]]:
    """`teacher_nll` summed, and its gradient times a factor, softmax(logits) - softmax(wanted), in the dtype of both.

    By hand: a third of the passes over the vocabulary that autograd would make. The wanted logits may be overwritten.
    """
    if has_kernels(logits.device):
        from apportion.models import loss_kernels

        losses, slope = loss_kernels.teacher_slope(logits.flatten(0, 1), wanted.flatten(0, 1), factor)
        return losses.sum(), slope.view(logits.shape)
    log_share = logits.float().log_softmax(-1)
    labels = wanted.float().softmax(-1)
    loss = -torch.linalg.vecdot(labels.flatten(), log_share.flatten())
    return loss, (log_share.exp_().sub_(labels) * factor).to(logits)


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
            if teacher is None:
                losses = token_nll(logits, targets[chunk, start:stop])
            else:
                losses = teacher_nll(logits, teacher_logits_of(teacher[chunk, start:stop].to(hidden)))
            sums[chunk] += losses.double().sum(1)
    return sums / (length - 1)
