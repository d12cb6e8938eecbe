"""Our integer grid in ggml's types, without loss: a plan found and tuned here, for programs that read GGUF.

    codes of up to 4 bits, groups of 32 k   ->  Q4_0: d (float16), 16 bytes; w = d * (nibble - 8)
    codes of 8 bits, groups of 32 k         ->  Q8_0: d (float16), 32 signed bytes; w = d * byte

A group of 64 becomes two blocks with the same scale. Nothing is rounded: a scale that float16 does not hold is refused,
unless all its codes are zero.
"""

import numpy as np
import torch
from jaxtyping import Int8
from torch import Tensor

from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.formats.compressed_tensors import GridWeight
from apportion.formats.ggml import GgmlWeight, ggml_width

BLOCK = 32


def as_ggml(weight: GridWeight, where: str = "weight") -> GgmlWeight:
    """The same matrix as a GGUF file holds it.

    Args:
        where: the matrix's name, for errors.

    Returns:
        Q4_0 or Q8_0; decodes to exactly what `weight` does in float32.

    Raises:
        InputError: groups that blocks of 32 do not divide, or a scale that float16 does not hold.
    """
    codes, scale = weight.codes.cpu(), weight.scale.cpu().float()
    rows, columns = codes.shape
    group = columns // scale.shape[1]
    if group % BLOCK:
        raise InputError(
            f"{where}: groups of {group} columns, which blocks of {BLOCK} do not divide", "use groups of 32 k"
        )
    scale = torch.where(codes.view(rows, -1, group).any(-1), scale, 0.0)
    half = scale.half()
    if not torch.equal(half.float(), scale):
        wrong = scale[half.float() != scale].abs()
        raise InputError(
            f"{where}: {len(wrong)} scales ({float(wrong.min()):.3g} to {float(wrong.max()):.3g}) that float16 does "
            "not hold exactly",
            "round it again: quantize --format gguf",
        )
    blocks = codes.view(rows, columns // BLOCK, BLOCK)
    d = half.repeat_interleave(group // BLOCK, dim=1)[..., None].numpy().view(np.uint8)
    small = weight.width.code_bits <= 4
    data = nibble_halves(blocks) if small else blocks.numpy().view(np.uint8)
    stored = np.concatenate([d.reshape(rows, columns // BLOCK, 2), data], axis=-1).reshape(rows, -1)
    return GgmlWeight(torch.from_numpy(stored), ggml_width("Q4_0" if small else "Q8_0"))


def nibble_halves(blocks: Int8[Tensor, "rows blocks 32"]) -> NDArray[np.uint8]:
    """Codes from -8 to 7, the first half of a block in the low nibbles.

    >>> nibble_halves(torch.tensor([[[-8] * 16 + [7] * 16]], dtype=torch.int8))[0, 0, :2].tolist()
    [240, 240]
    """
    raised = (blocks + 8).to(torch.uint8)
    found: NDArray[np.uint8] = (raised[..., :16] | (raised[..., 16:] << 4)).numpy()
    return found
