"""`loss` on a GPU, in Triton: one pass over the logits, two with a teacher. Imported only where Triton is.

A program goes through one token's logits and keeps running sums in registers. Bytes for each logit of a vocabulary, in
bfloat16: 2 with a text's own labels, 8 with a teacher's, 10 with the slope too; operation by operation in float32 they
are about 20, 60 and 150, which was most of a step of learning where a vocabulary has 260 thousand words.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from apportion.core.launch import on_its_device

SIZE, WARPS = 4096, 8  # logits that a program holds at once
LOWEST = tl.constexpr(-1.0e30)  # what a running maximum begins with: differences to it stay numbers


@triton.jit
def more(value, top, total):  # type: ignore[no-untyped-def]
    """Running maxima and sums of exponentials, lane by lane."""
    new = tl.maximum(top, value)
    return new, total * tl.exp(top - new) + tl.exp(value - new)


@triton.jit
def log_sum(top, total):  # type: ignore[no-untyped-def]
    highest = tl.max(top, axis=0)
    return highest + tl.log(tl.sum(total * tl.exp(top - highest), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def text_kernel(logits, targets, losses, vocabulary, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    own, column = logits + row * vocabulary, tl.arange(0, SIZE)
    top, total = tl.full((SIZE,), LOWEST, tl.float32), tl.zeros((SIZE,), tl.float32)
    for first in range(0, vocabulary, SIZE):
        place = first + column
        value = tl.load(own + place, mask=place < vocabulary, other=LOWEST).to(tl.float32)
        top, total = more(value, top, total)
    target = tl.load(targets + row)
    known = (target >= 0) & (target < vocabulary)
    right = tl.load(own + target, mask=known, other=float("nan")).to(tl.float32)
    tl.store(losses + row, log_sum(top, total) - right)


@triton.jit  # type: ignore[untyped-decorator]
def teacher_kernel(  # type: ignore[no-untyped-def]
    logits, wanted, losses, factor, vocabulary, SLOPE: tl.constexpr, SIZE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    own, full, column = logits + row * vocabulary, wanted + row * vocabulary, tl.arange(0, SIZE)
    top, total = tl.full((SIZE,), LOWEST, tl.float32), tl.zeros((SIZE,), tl.float32)
    high, whole = tl.full((SIZE,), LOWEST, tl.float32), tl.zeros((SIZE,), tl.float32)
    for first in range(0, vocabulary, SIZE):
        place = first + column
        here = place < vocabulary
        top, total = more(tl.load(own + place, mask=here, other=LOWEST).to(tl.float32), top, total)
        high, whole = more(tl.load(full + place, mask=here, other=LOWEST).to(tl.float32), high, whole)
    norm, norm_full = log_sum(top, total), log_sum(high, whole)
    loss = tl.zeros((SIZE,), tl.float32)
    for first in range(0, vocabulary, SIZE):
        place = first + column
        here = place < vocabulary
        value = tl.load(own + place, mask=here, other=LOWEST).to(tl.float32) - norm
        share = tl.exp(tl.load(full + place, mask=here, other=LOWEST).to(tl.float32) - norm_full)
        loss += tl.where(here, -share * value, 0.0)
        if SLOPE:
            tl.store(full + place, ((tl.exp(value) - share) * factor).to(wanted.dtype.element_ty), mask=here)
    tl.store(losses + row, tl.sum(loss, axis=0))


@on_its_device
def text_nll(logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """Negative log-likelihood of each target, float32; NaN for a target that is no word."""
    logits, targets = logits.contiguous(), targets.contiguous()
    losses = torch.empty(len(logits), device=logits.device)
    if len(logits):
        text_kernel[(len(logits),)](logits, targets, losses, logits.shape[1], SIZE=SIZE, num_warps=WARPS)
    return losses


@on_its_device
def teacher_nll(
    logits: Float[Tensor, "tokens vocabulary"], wanted: Float[Tensor, "tokens vocabulary"]
) -> Float[Tensor, " tokens"]:
    """Cross-entropy of each token to the distribution of the wanted logits, float32."""
    return of_teacher(logits.contiguous(), wanted.contiguous(), 0.0, slope=False)


@on_its_device
def teacher_slope(
    logits: Float[Tensor, "tokens vocabulary"], wanted: Float[Tensor, "tokens vocabulary"], factor: float
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens vocabulary"]]:
    """`teacher_nll`, and its gradient times a factor, which is written over the wanted logits."""
    wanted = wanted.contiguous()
    return of_teacher(logits.contiguous(), wanted, factor, slope=True), wanted


def of_teacher(logits: Tensor, wanted: Tensor, factor: float, *, slope: bool) -> Tensor:
    assert logits.shape == wanted.shape, "logits and wanted ones are of several vocabularies"
    assert logits.dtype == wanted.dtype, "logits and wanted ones are of several dtypes"
    losses = torch.empty(len(logits), device=logits.device)
    if len(logits):
        teacher_kernel[(len(logits),)](
            logits, wanted, losses, factor, logits.shape[1], SLOPE=slope, SIZE=SIZE, num_warps=WARPS
        )
    return losses
