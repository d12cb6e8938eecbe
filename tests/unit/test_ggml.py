"""ggml's types as widths: sizes, fallbacks, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apportion.bits.rounding.ggml import decode, quantize
from apportion.core.errors import InputError
from apportion.formats.ggml import GGUF, PLAIN, TYPES, block_of, ggml_width, matrix_bytes, resolve
from apportion.formats.packed import Packed, shape_bytes


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FAST = ("Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q6_K")


@pytest.mark.parametrize(
    ("asked", "columns", "given_type"),
    [
        ("Q2_K", 576, "IQ4_NL"),
        ("Q3_K", 896, "IQ4_NL"),
        ("IQ4_XS", 640, "IQ4_NL"),
        ("Q4_K", 640, "Q5_0"),
        ("Q5_K", 640, "Q5_1"),
        ("Q6_K", 576, "Q8_0"),
        ("Q6_K", 2048, "Q6_K"),
        ("Q4_0", 48, "F16"),
    ],
)
def test_fallbacks_are_those_of_llama_cpp(asked: str, columns: int, given_type: str) -> None:
    assert resolve(asked, columns) == given_type


@given(st.sampled_from(TYPES), st.integers(1, 5000))
def test_what_is_resolved_always_fits(name: str, columns: int) -> None:
    assert columns % block_of(resolve(name, columns))[0] == 0


@pytest.mark.parametrize("name", FAST)
def test_bytes_are_as_counted(name: str) -> None:
    width = ggml_width(name)
    packed = quantize(noise(7, 512), width)
    assert isinstance(packed, Packed)
    counted = shape_bytes(GGUF.shapes(width, 7, 512, torch.bfloat16))
    assert packed.stored.numel() == counted == matrix_bytes(name, 7, 512) == 7 * 512 * width.bits / 8
    again = GGUF.unpack(packed.tensors(), (7, 512), width)
    assert torch.equal(again.dequantize(torch.float32), packed.dequantize(torch.float32))


@pytest.mark.parametrize("name", FAST)
def test_error_falls_with_the_bits(name: str) -> None:
    weight = noise(32, 512)
    error = (quantize(weight, ggml_width(name)).dequantize(torch.float32) - weight).pow(2).mean().sqrt()
    assert 0.1 < float(error) * 2 ** ggml_width(name).bits < 4


@pytest.mark.parametrize("name", TYPES)
def test_ggml_decodes_to_the_bit_what_gguf_does(name: str) -> None:
    weight = noise(8, 512)
    found = quantize(weight, ggml_width(name), noise(512).abs() + 0.1)
    assert torch.equal(decode(found), found.dequantize(torch.float32))


def test_an_importance_of_columns_moves_the_codes() -> None:
    weight, importance = noise(8, 256), noise(256, seed=1).abs() + 0.01
    found = quantize(weight, ggml_width("Q4_K"), importance)
    assert not torch.equal(found.stored, quantize(weight, ggml_width("Q4_K")).stored)
    error = [
        ((one.dequantize(torch.float32) - weight) ** 2 * importance).sum()
        for one in (found, quantize(weight, ggml_width("Q4_K")))
    ]
    assert error[0] < error[1]


def test_refusals_name_type_and_columns() -> None:
    with pytest.raises(InputError, match="Q4_K: stores blocks of 256 columns, which do not divide 96"):
        quantize(torch.randn(2, 96), ggml_width("Q4_K"))
    with pytest.raises(InputError, match="Q9_9: unknown"):
        ggml_width("Q9_9")
    with pytest.raises(InputError, match="IQ2_XS: needs an importance"):
        quantize(torch.randn(2, 256), ggml_width("IQ2_XS"))
    with pytest.raises(InputError, match="negative or not finite"):
        quantize(torch.randn(2, 256), ggml_width("Q4_K"), torch.full((256,), float("nan")))


def test_plain_types_have_the_size_of_their_dtype() -> None:
    for name, dtype in PLAIN.items():
        assert matrix_bytes(name, 3, 5) == 15 * dtype.itemsize
