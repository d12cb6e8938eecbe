"""Our grid in ggml's blocks: decoded by gguf itself to the same numbers, or refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.errors import InputError
from apportion.formats import GridWeight, grid_width
from apportion.formats.ggml_grid import as_ggml


def grid(bits: int, group: int, rows: int, groups: int, seed: int = 0) -> GridWeight:
    width = grid_width(bits, group)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(
        width.lowest, width.highest + 1, (rows, groups * group), generator=generator, dtype=torch.int8
    )
    scale = torch.randn(rows, groups, generator=generator) * 0.02
    return GridWeight.of(codes, scale.bfloat16(), width)


@given(st.sampled_from([2, 3, 4, 8]), st.sampled_from([32, 64, 128]), st.integers(1, 5), st.integers(1, 4))
def test_nothing_is_lost(bits: int, group: int, rows: int, groups: int) -> None:
    weight = grid(bits, group, rows, groups)
    found = as_ggml(weight)
    assert found.width.name == ("Q8_0" if bits == 8 else "Q4_0")
    assert torch.equal(found.dequantize(torch.float32), weight.dequantize(torch.float32))


def test_the_scale_of_a_group_of_zeros_does_not_matter() -> None:
    weight = grid(4, 64, 2, 2)
    codes, scale = weight.codes, weight.scale.clone()
    codes[0, :64], scale[0, 0] = 0, 1e-30
    found = as_ggml(GridWeight.of(codes, scale, weight.width))
    assert torch.equal(found.dequantize(torch.float32), codes.float() * scale.float().repeat_interleave(64, 1))
    codes[0, 5] = 1
    with pytest.raises(InputError, match="1 scales"):
        as_ggml(GridWeight.of(codes, scale, weight.width))


def test_what_blocks_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="q_proj: groups of 48 columns"):
        as_ggml(grid(4, 48, 2, 2), "q_proj")
    weight = grid(4, 64, 2, 2)
    weight.scale[0, 0] = 1e6
    with pytest.raises(InputError, match=r"scales .* that float16 does not hold"):
        as_ggml(weight)
