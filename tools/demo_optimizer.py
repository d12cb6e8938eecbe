"""Muon for the matrices of the blocks, AdamW for the rest.

Source: Jordan et al., Muon (2024): momentum made orthogonal by five Newton-Schulz steps; the update is scaled
to the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982). Matrices of one shape are one batch.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon:
    """Updates matrices in batches of one shape."""

    def __init__(self, matrices: Iterable[nn.Parameter], weight_decay: float) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            shapes[matrix.shape].append(matrix)
        self.groups = list(shapes.values())
        self.momenta = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.groups]
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp(momentum, MOMENTUM))
            scale = 0.2 * max(update.shape[1:]) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.weight_decay)
            torch._foreach_add_(group, list((update * scale).float().unbind()), alpha=-rate)


def orthogonal(batch: Tensor) -> Tensor:
    """The nearest half-orthogonal matrices, about: singular values end near 1."""
    a, b, c = COEFFICIENTS
    x = batch.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
