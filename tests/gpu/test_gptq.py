"""The fused loops give what the plain ones give (run where a CUDA device is)."""

import pytest
import torch
from torch import Tensor

from apportion.bits.rounding import loops
from apportion.bits.rounding.gptq import Gptq, column_order, error_factor, feed_back
from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.nearest import search_scale
from apportion.bits.rounding.refine import descend, row_error, spread
from apportion.bits.rounding.sequential import products
from apportion.formats import grid_width

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PLAIN = loops.Loops(loops.feed_back, loops.settle)


def layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Moments]:
    generator = torch.Generator("cuda").manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator, device="cuda")
    inputs += inputs.roll(1, 1)
    weight = torch.randn(rows, columns, generator=generator, device="cuda").bfloat16()
    return weight, Moments(inputs.T @ inputs / len(inputs), None, len(inputs))


@pytest.mark.parametrize(("rows", "columns"), [(13, 192), (300, 576)])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_launch_a_block_finds_the_codes_of_one_operation_at_a_time(rows: int, columns: int, bits: int) -> None:
    weight, moments = layer(rows, columns)
    width, target = grid_width(bits, 64), weight.float()
    scale = search_scale(target.view(rows, -1, 64), torch.ones(1, 1, 64, device="cuda"), width, torch.bfloat16).float()
    order = column_order(moments.hessian, True)
    factor = error_factor(moments.hessian, 0.01, order)
    fused, plain = (feed_back(target, scale, factor, width, order, kind) for kind in (None, PLAIN))
    assert (fused == plain).float().mean() > 0.999  # a tie may fall the other way after other roundings
    settled, settled_plain = (descend(target, plain, scale, moments.hessian, width, 2, kind) for kind in (None, PLAIN))
    assert (settled == settled_plain).float().mean() > 0.999
    errors = [row_error(target, codes * spread(scale, columns), moments.hessian).sum() for codes in (fused, plain)]
    assert torch.allclose(*errors, rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scales_searched_in_one_launch_are_those_of_the_search(bits: int, dtype: torch.dtype) -> None:
    width, (weight, moments) = grid_width(bits, 64), layer(100, 192)
    grouped, importance = weight.float().view(100, -1, 64), moments.hessian.diagonal().view(1, -1, 64)
    fused = search_scale(grouped, importance, width, dtype).cpu()
    plain = search_scale(grouped.cpu(), importance.cpu(), width, dtype)
    assert (fused == plain).float().mean() > (0.99 if dtype != torch.float32 else 0.0)
    assert torch.allclose(fused.float(), plain.float(), rtol=1e-2)


def test_a_group_of_zeros_is_used_only_where_that_lowers_the_error() -> None:
    weight, moments = layer(40, 128)
    weight[:, :64] = 0
    found = Gptq().round(weight, grid_width(2, 64), moments).dequantize(torch.float32)
    left_out = torch.cat([torch.zeros_like(found[:, :64]), found[:, 64:]], 1)
    errors = [row_error(weight.float(), one, moments.hessian).sum() for one in (found, left_out)]
    assert found.isfinite().all()
    assert errors[0] <= errors[1]


def test_products_of_narrow_states_are_those_of_wide_ones() -> None:
    left, right = (torch.randn(500, size, device="cuda").bfloat16() for size in (96, 64))
    wanted = left.double().T @ right.double()
    assert torch.allclose(products(left, right).double(), wanted, rtol=1e-4, atol=1e-3)
