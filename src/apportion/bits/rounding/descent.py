"""Steps of gradient descent on latent codes: rates that warm up and fall, batches that fit, smaller ones where not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from apportion.bits.rounding.latent import Latents

WARM_STEPS = 10
LOSS_SCALE = {torch.float16: 1024.0}  # gradients of single weights underflow in float16; Adam divides it out


@dataclass
class Micro:
    """Windows of one forward and backward pass, halved when memory runs out; sums over a batch stay the same.

    Attributes:
        windows: now. asked: at first; a smaller `windows` is said in the result.
    """

    windows: int
    asked: int

    def halve(self) -> None:
        """Half as many from now on."""
        self.windows = max(1, self.windows // 2)


Gradient = Callable[[dict[str, Tensor], Int[Tensor, " part"], float], Tensor]
"""Loss of a part of a batch as its share of the whole, having sent its gradient to the weights."""


def descend(
    latents: Latents,
    gradient: Gradient,
    chosen: Iterator[Int[Tensor, " size"]],
    steps: int,
    dtype: torch.dtype,
    micro: Micro,
) -> Iterator[float]:
    """One step after another; yields each step's loss.

    Args:
        gradient: given the weights (leaves that want a gradient), windows and their share of the batch.
        chosen: the windows of each step.

    Raises:
        torch.OutOfMemoryError: one window does not fit.
    """
    optimizers = [codes.optimizer() for codes in latents.codes]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for step, batch in enumerate(chosen):
        share = min(1.0, (step + 1) / WARM_STEPS) * (1 - step / steps)
        for optimizer, given in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, given, strict=True):
                group["lr"] = rate * share
            optimizer.zero_grad()
        loss = None
        while loss is None:
            try:
                loss = one_step(latents, gradient, batch, step / steps, dtype, micro.windows)
            except torch.OutOfMemoryError:
                if micro.windows == 1:
                    raise
                micro.halve()
                torch.cuda.empty_cache()
        for optimizer, codes in zip(optimizers, latents.codes, strict=True):
            optimizer.step()
            codes.confine()
        yield loss


def one_step(
    latents: Latents, gradient: Gradient, batch: Tensor, progress: float, dtype: torch.dtype, micro: int
) -> float:
    """The gradient of one batch, part by part; the loss."""
    with torch.enable_grad():
        decoded = latents.weights(dtype, progress)
        leaves = {path: weight.detach().requires_grad_() for path, weight in decoded.items()}
        losses = [gradient(leaves, part, len(part) / len(batch)) for part in batch.split(micro)]
        used = [path for path, leaf in leaves.items() if leaf.grad is not None]
        torch.autograd.backward([decoded[path] for path in used], [leaves[path].grad for path in used])
    return float(torch.stack(losses).sum())


def batches(windows: int, size: int, steps: int, seed: int) -> Iterator[Int[Tensor, " size"]]:
    """Random windows, all of them once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.zeros(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(windows, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
