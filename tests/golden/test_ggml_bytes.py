"""Our quantizer writes what llama.cpp writes: against a second build of ggml, and against bytes kept here."""

import ctypes
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
import xllamacpp

from apportion.bits.rounding.ggml import NEEDS_IMPORTANCE, quantize
from apportion.formats.ggml import SMALL_TYPES, TYPES, block_of, ggml_width, gguf

SLOW = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")  # milliseconds a weight
KEPT = {  # SHA-256 of the bytes of `weight(2)` with `importance()`, first 12 digits
    "Q2_K": "dd094b08c3b9",
    "Q3_K": "72c0e5fda672",
    "Q4_K": "6a3e5306998a",
    "Q5_K": "3e36383e8dd3",
    "Q6_K": "ca9fe43e1413",
    "IQ4_XS": "da5b0c36f303",
    "Q4_0": "0068fbd4051a",
    "IQ4_NL": "293da91f2f11",
    "Q4_1": "9ed7e44c9b13",
    "Q5_0": "6e418e20e38c",
    "Q5_1": "f3a5272010da",
    "Q8_0": "28006ade98ce",
}


def weight(rows: int, columns: int = 512) -> torch.Tensor:
    """Heavy-tailed weights, the same everywhere: of integers, since generators differ between versions."""
    steps = (np.arange(rows * columns, dtype=np.uint64) * 2654435761 + 12345) % 65521
    uniform = (steps.astype(np.float64) + 0.5) / 65521
    return torch.from_numpy((0.02 * np.log(uniform / (1 - uniform))).astype(np.float32)).view(rows, columns)


def importance(columns: int = 512) -> torch.Tensor:
    return torch.from_numpy((0.1 + np.arange(columns) * 7919 % 97 / 97).astype(np.float32))


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    """ggml's function as llama.cpp itself calls it."""
    found = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    return found


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_are_those_of_llama_cpp(name: str, weighted: bool, llama_cpp: Any) -> None:
    if name in NEEDS_IMPORTANCE and not weighted:
        pytest.skip("needs an importance")
    rows = 1 if name in SLOW else 6
    values = weight(rows)
    own = importance() if weighted else None
    found = quantize(values, ggml_width(name), own, threads=2).stored.numpy()
    expected = np.empty_like(found)
    pointer = None if own is None else own.numpy().ctypes.data
    kind = int(gguf().GGMLQuantizationType[name])
    array = values.numpy()
    llama_cpp.ggml_quantize_chunk(kind, array.ctypes.data, expected.ctypes.data, 0, rows, 512, pointer)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [name for name in TYPES if name not in SLOW])
def test_bytes_stay_as_they_were(name: str) -> None:
    stored = quantize(weight(2), ggml_width(name), importance()).stored.numpy()
    assert hashlib.sha256(stored.tobytes()).hexdigest()[:12] == KEPT[name]


@pytest.mark.parametrize("name", [name for name in TYPES if name not in SLOW])
def test_importance_moves_error_where_it_costs_least(name: str) -> None:
    values, own = weight(64), torch.ones(512)
    own[::2] = 100.0
    error = (quantize(values, ggml_width(name), own).dequantize(torch.float32) - values) ** 2
    plain = (quantize(values, ggml_width(name)).dequantize(torch.float32) - values) ** 2
    if name == "Q8_0":
        assert torch.equal(error, plain), "Q8_0 has no search"
    else:
        assert (error * own).sum() < (plain * own).sum()


def test_threads_do_not_change_bytes() -> None:
    values = weight(5000, 256)  # more than one chunk
    one, four = (quantize(values, ggml_width("Q4_0"), threads=threads).stored for threads in (1, 4))
    assert torch.equal(one, four)


@pytest.mark.parametrize("name", SMALL_TYPES)
def test_small_types_hold_what_k_quants_cannot(name: str) -> None:
    found = quantize(weight(3, 96), ggml_width(name))
    assert found.shape == (3, 96)
    assert found.stored.shape[1] == 96 // 32 * block_of(name)[1]
