"""What passes through each block of the full-precision model: for scores that look at activations alone."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.core.arrays import NDArray
from apportion.models.staged import StagedModel


@dataclass(frozen=True, slots=True)
class BlockFlow:
    """Of each block, on some text, averaged over its windows.

    Attributes:
        cosine: between a window's input and its output, both flattened.
        norm: Frobenius norm of a window's output.
    """

    cosine: Float[NDArray[np.float64], " blocks"]
    norm: Float[NDArray[np.float64], " blocks"]


def block_flow(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> BlockFlow:
    """Run the checkpoint's own weights over a text and look at every block's input and output.

    Cost: one forward pass; sums in float64.
    """
    staged.restore()
    return staged.within_memory(windows, lambda: seen(staged, windows))


@torch.inference_mode()
def seen(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> BlockFlow:
    """`block_flow` of the weights that are in place, with as many windows at once as the model runs now."""
    embedded = staged.embed(windows)
    hidden = embedded.hidden
    cosines, norms = [], []
    for block in range(staged.layout.block_count):
        out = staged.run_block(block, hidden, embedded)
        before, after = hidden.flatten(1).double(), out.flatten(1).double()
        size = after.norm(dim=1)
        cosines.append(float(((before * after).sum(1) / (before.norm(dim=1) * size).clamp_min(1e-300)).mean()))
        norms.append(float(size.mean()))
        hidden = out
    return BlockFlow(np.asarray(cosines), np.asarray(norms))
