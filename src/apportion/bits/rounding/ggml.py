"""ggml's own quantizer, from a wheel that carries ggml and nothing else (libggml-python): the bytes that
llama.cpp's `llama-quantize` would write.

Why this wheel: it is ggml's library as its authors build it, every type in it, through one C function whose signature
has not changed (`ggml_quantize_chunk`), called without the interpreter's lock, so that threads help. libgguf (a
standalone rewrite) and xllamacpp (all of llama.cpp, one library a hundred times larger) give the same bytes for every
type (measured on 2026-11-27; `tests/golden/test_ggml_bytes.py` keeps it so against xllamacpp).
"""

import ctypes
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from apportion.core.arrays import NDArray
from apportion.core.errors import InputError, MissingExtraError
from apportion.formats.ggml import GgmlWeight, gguf, matrix_bytes
from apportion.formats.width import Width

NEEDS_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ2_S")
CHUNK_WEIGHTS = 1 << 16  # of one call: even a small matrix is spread over threads


@cache
def library() -> Any:
    """ggml, with the function that quantizes.

    Raises:
        MissingExtraError: the wheel is not installed.
    """
    spec = find_spec("libggml")
    if spec is None or spec.origin is None:
        raise MissingExtraError("libggml-python", "gguf")
    found = ctypes.CDLL(str(Path(spec.origin).parent / "lib64" / "libggml-base.so"))
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    return found


def quantize(
    weight: Float[Tensor, "rows columns"],
    width: Width,
    importance: Float[Tensor, " columns"] | None = None,
    *,
    threads: int | None = None,
) -> GgmlWeight:
    """A matrix in one of ggml's types.

    Args:
        weight: [rows, columns], any float dtype.
        width: see `ggml_width`; its block divides the columns.
        importance: [columns], what an error in each column costs: E[x^2] of the linear's inputs. llama.cpp calls it an
            importance matrix. Types without a search (Q8_0) ignore it.
        threads: all cores if left out.

    Returns:
        The bytes that llama.cpp would write for the same weight and importance.

    Raises:
        InputError: the block does not divide the columns, or the type needs an importance and has none.
        MissingExtraError: the extra `gguf` is not installed.

    Cost: 5 to 700 ns a weight and thread; the IQ2 and IQ3 types up to a thousand times more.

    Example:
        >>> from apportion.formats.ggml import ggml_width
        >>> weight = torch.linspace(-1, 1, 256).view(4, 64)
        >>> found = quantize(weight, ggml_width("Q8_0"))
        >>> found.stored.shape, bool((found.dequantize(torch.float32) - weight).abs().max() < 0.005)
        (torch.Size([4, 68]), True)
    """
    rows, columns = weight.shape
    if importance is None and width.name in NEEDS_IMPORTANCE:
        raise InputError(f"type {width.name}: needs an importance of columns", "give calibration text")
    values = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    weights = None if importance is None else checked(importance, columns)
    stored = np.empty((rows, matrix_bytes(width.name, rows, columns) // rows), dtype=np.uint8)
    function, kind = library().ggml_quantize_chunk, int(gguf().GGMLQuantizationType[width.name])
    step = max(1, CHUNK_WEIGHTS // columns)

    def work(start: int) -> None:
        part = values[start : start + step]
        out = stored[start : start + step]
        pointer = None if weights is None else weights.ctypes.data
        written = function(kind, part.ctypes.data, out.ctypes.data, 0, len(part), columns, pointer)
        assert written == out.nbytes, "ggml wrote another number of bytes than its own table says"

    spread(work, range(0, rows, step), threads or os.cpu_count() or 1)
    return GgmlWeight(torch.from_numpy(stored), width)


def decode(weight: GgmlWeight) -> Float[Tensor, "rows columns"]:
    """As `weight.dequantize(torch.float32)`, to the bit, by ggml's own function.

    Raises:
        MissingExtraError: the extra `gguf` is not installed.

    Cost: .3 to 4 ns a weight (gguf's own code: 2 to 27), without the interpreter's lock: threads help.

    Example:
        >>> from apportion.formats.ggml import ggml_width
        >>> found = quantize(torch.linspace(-1, 1, 256).view(4, 64), ggml_width("IQ4_NL"))
        >>> bool((decode(found) == found.dequantize(torch.float32)).all())
        True
    """
    function = getattr(library(), "dequantize_row_" + weight.width.name.lower().replace("_k", "_K"))
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    stored = np.ascontiguousarray(weight.stored.cpu().numpy())
    values = np.empty(weight.shape, dtype=np.float32)
    function(stored.ctypes.data, values.ctypes.data, values.size)
    return torch.from_numpy(values)


def checked(importance: Float[Tensor, " columns"], columns: int) -> NDArray[np.float32]:
    """The importance as ggml reads it.

    Columns that were never seen (all zero) would leave scales undefined: they get the smallest weight seen.

    Raises:
        InputError: not finite, or negative.
    """
    values = np.ascontiguousarray(importance.detach().float().cpu().numpy())
    assert values.shape == (columns,), "one number for each column"
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError("importance: holds numbers that are negative or not finite", "use --dtype float32")
    seen = values[values > 0]
    found: NDArray[np.float32] = np.maximum(values, seen.min() if len(seen) else np.float32(1.0))
    return found


def spread(work: Any, starts: Iterable[int], threads: int) -> None:
    """Call a function for every start, on some threads."""
    if threads == 1:
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, starts):
            pass
