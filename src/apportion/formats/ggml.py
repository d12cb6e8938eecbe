"""ggml's block types as widths, and matrices stored in them: what a GGUF file holds.

A type stores a row in blocks of 32 or 256 columns, each with its own scales, so a matrix takes exactly

    rows * columns / block columns * block bytes        e.g. Q4_K: 144 bytes for 256 columns, 4.5 bits a weight

Sizes and decoding are gguf's own tables and code; nothing here encodes (see `bits.rounding.ggml`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from apportion.core.errors import InputError, MissingExtraError
from apportion.formats.packed import Packed, Shapes
from apportion.formats.width import Width

K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
IQ_TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS")
SMALL_TYPES = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # blocks of 32 columns
TYPES = (*K_TYPES, *IQ_TYPES, *SMALL_TYPES)
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FALLBACKS = {
    **dict.fromkeys(("Q2_K", "Q3_K", *IQ_TYPES), "IQ4_NL"), "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"
}  # fmt: skip


@cache
def gguf() -> Any:
    """The package that knows the file format.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import gguf as package
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf") from error
    return package


def block_of(name: str) -> tuple[int, int]:
    """Columns and bytes of a type's block.

    >>> block_of("Q4_K"), block_of("Q8_0"), block_of("F16")
    ((256, 144), (32, 34), (1, 2))

    Raises:
        InputError: no such type.
    """
    types = gguf().GGMLQuantizationType.__members__
    if name not in types:
        raise InputError(f"type {name}: unknown to gguf", f"choose from {', '.join(TYPES)}")
    columns, size = gguf().GGML_QUANT_SIZES[types[name]]
    return int(columns), int(size)


def ggml_width(name: str) -> Width:
    """A type as a width; its bits count the scales.

    >>> ggml_width("Q6_K")
    Width(name='Q6_K', bits=6.5625, group_size=256)

    Raises:
        InputError: no such type.
    """
    columns, size = block_of(name)
    return Width(name, 8 * size / columns, columns)


def resolve(name: str, columns: int) -> str:
    """The type that llama.cpp stores a matrix in when `name` is asked for: itself, or what its columns allow.

    >>> resolve("Q4_K", 1024), resolve("Q4_K", 896), resolve("Q6_K", 576), resolve("Q2_K", 100)
    ('Q4_K', 'Q5_0', 'Q8_0', 'F16')

    Source: `tensor_type_fallback` of llama.cpp's src/llama-quant.cpp.
    """
    if columns % block_of(name)[0] == 0:
        return name
    fallback = FALLBACKS.get(name, "F16")
    return fallback if columns % block_of(fallback)[0] == 0 else "F16"


def matrix_bytes(name: str, rows: int, columns: int) -> int:
    """Bytes of a matrix in a type.

    >>> matrix_bytes("Q4_K", 10, 512)
    2880

    Raises:
        InputError: blocks do not divide the columns.
    """
    block, size = block_of(name)
    if columns % block:
        raise InputError(
            f"type {name}: stores blocks of {block} columns, which do not divide {columns}",
            f"llama.cpp would use {resolve(name, columns)}",
        )
    return rows * (columns // block) * size


@dataclass(frozen=True, slots=True)
class GgmlWeight:
    """A matrix as a GGUF file stores it: the bytes of every row, and their type."""

    stored: UInt8[Tensor, "rows row_bytes"]
    width: Width

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        block, size = block_of(self.width.name)
        rows, row_bytes = self.stored.shape
        return rows, row_bytes // size * block

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """As llama.cpp decodes it (in float32), then cast; on the CPU."""
        kind = gguf().GGMLQuantizationType[self.width.name]
        values = gguf().quants.dequantize(self.stored.cpu().numpy(), kind)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(self.shape).to(dtype)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"weight": self.stored.cpu()}


class GgufFormat:
    """The format of `--format gguf`: one file, read by llama.cpp and everything built on it."""

    name = "gguf"
    bits = ()
    servers = ("llama.cpp", "Ollama", "LM Studio", "vLLM (experimental)")

    def shapes(self, width: Width, rows: int, columns: int, dtype: torch.dtype) -> Shapes:
        return {"weight": (torch.uint8, (rows, matrix_bytes(width.name, rows, columns) // rows))}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], width: Width) -> Packed:
        return GgmlWeight(tensors["weight"].view(shape[0], -1), width)


GGUF = GgufFormat()
