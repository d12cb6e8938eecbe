"""llama.cpp's standard mixes: the types that `llama-quantize --imatrix --dry-run` named for SmolLM2-135M."""

from collections import Counter

import numpy as np
import pytest

from apportion.bits.gguf.ladders import ladders_of
from apportion.bits.gguf.mixes import MIXES, assignment_of, fitting_mix, mix_types
from apportion.formats.ggml import TYPES, matrix_bytes
from apportion.formats.gguf_file import Field

BLOCKS = 30
SHAPES = {"token_embd.weight": (4096, 576)} | {
    f"blk.{block}.{kind}.weight": (64, 1536 if kind == "ffn_down" else 576)
    for block in range(BLOCKS)
    for kind in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
}
COLUMNS = {name: shape[1] for name, shape in SHAPES.items()}
DRY_RUN = {  # ik-llama-cpp-python's llama-quantize on 2026-11-27, its q6_0 read as Q5_1
    "Q2_K": {"attn_v": {"IQ4_NL": 30}, "attn_output": {"IQ4_NL": 30}, "ffn_down": {"Q3_K": 30}},
    "Q3_K_M": {"attn_v": {"Q5_1": 2, "Q5_0": 28}, "attn_output": {"Q5_0": 30}, "ffn_down": {"Q5_K": 1, "Q4_K": 29}},
    "Q4_K_S": {"attn_v": {"Q5_1": 4, "Q5_0": 26}, "attn_output": {"Q5_0": 30}, "ffn_down": {"Q5_K": 3, "Q4_K": 27}},
    "Q4_K_M": {"attn_v": {"Q8_0": 14, "Q5_0": 16}, "attn_output": {"Q5_0": 30}, "ffn_down": {"Q6_K": 14, "Q4_K": 16}},
}


@pytest.mark.parametrize("mix", list(DRY_RUN))
def test_types_are_those_of_llama_quantize(mix: str) -> None:
    found = mix_types(mix, COLUMNS, 3)
    assert found["token_embd.weight"] == "Q8_0"
    for kind, counts in DRY_RUN[mix].items():
        assert Counter(own for name, own in found.items() if name.endswith(f"{kind}.weight")) == counts
    if mix == "Q4_K_M":
        raised = [block for block in range(BLOCKS) if found[f"blk.{block}.ffn_down.weight"] == "Q6_K"]
        assert raised == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]


def test_an_output_head_of_its_own_has_the_higher_type() -> None:
    found = mix_types("Q4_K_S", {"token_embd.weight": 256, "output.weight": 256}, 1)
    assert found == {"token_embd.weight": "Q4_K", "output.weight": "Q6_K"}


def test_many_heads_to_a_key_raise_the_values_of_q2_k() -> None:
    names = {"blk.0.attn_v.weight": 256}
    assert [mix_types("Q2_K", names, heads)["blk.0.attn_v.weight"] for heads in (1, 4)] == ["Q3_K", "Q4_K"]


def test_the_largest_mix_that_fits_is_the_one_found() -> None:
    ladders = ladders_of(SHAPES, list(SHAPES), TYPES, {"general.architecture": Field("STRING", "llama")})
    sizes = {}
    for mix in MIXES:
        types = mix_types(mix, COLUMNS, 3)
        if assignment_of(ladders, types) is not None:
            sizes[mix] = sum(matrix_bytes(own, *SHAPES[name]) for name, own in types.items())
    for mix, size in sizes.items():
        found = fitting_mix(ladders, COLUMNS, 3, size)
        assert found is not None
        assert sizes[found[0]] == size
        assert ladders.costs.spent(found[1]) == size
        below = fitting_mix(ladders, COLUMNS, 3, size - 1)
        assert below is None or sizes[below[0]] < size
        assert below is not None or size == min(sizes.values()), mix
    assert fitting_mix(ladders, COLUMNS, 3, min(sizes.values()) - 1) is None


def test_a_mix_with_a_type_that_was_not_asked_for_is_no_rival() -> None:
    ladders = ladders_of(SHAPES, list(SHAPES), ("Q2_K", "Q8_0"), {"general.architecture": Field("STRING", "llama")})
    assert fitting_mix(ladders, COLUMNS, 3, np.iinfo(np.int64).max) is None
