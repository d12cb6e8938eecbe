"""GPTQ against a naive reference, and the laws of its refinement."""

import pytest
import torch
from torch import Tensor

from apportion.bits.rounding.gptq import Gptq, column_order, corrected, damped, error_factor, feed_back
from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.nearest import Nearest
from apportion.bits.rounding.refine import descend, fit_scales, row_error, spread
from apportion.core.errors import InputError
from apportion.formats import Width, grid_width

ROWS, COLUMNS, GROUP = 12, 160, 32


def layer(seed: int, *, tokens: int = 600) -> tuple[Tensor, Moments]:
    """A random weight and the moments of correlated inputs, full-precision and rounded."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5 + torch.eye(COLUMNS)
    full = torch.randn(tokens, COLUMNS, generator=generator) @ mix
    noisy = full + 0.3 * torch.randn(tokens, COLUMNS, generator=generator)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    return weight, Moments(noisy.T @ noisy / tokens, full.T @ noisy / tokens, tokens)


def naive_codes(weight: Tensor, scale: Tensor, hessian: Tensor, width: Width, order: Tensor) -> Tensor:
    """The optimal-brain-surgeon update as it is derived: one column at a time, the inverse taken anew each time."""
    left = weight.double().clone()
    codes = torch.zeros_like(left)
    remaining = order.tolist()
    scales = spread(scale.double(), COLUMNS)
    while remaining:
        column = remaining[0]
        inverse = torch.linalg.inv(hessian[remaining][:, remaining])
        codes[:, column] = (left[:, column] / scales[:, column]).round().clamp(width.lowest, width.highest)
        error = left[:, column] - codes[:, column] * scales[:, column]
        left[:, remaining] -= torch.outer(error, inverse[0] / inverse[0, 0])
        remaining = remaining[1:]
    return codes


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_blocked_loop_equals_the_naive_one(bits: int, activation: bool) -> None:
    weight, moments = layer(bits)
    width = grid_width(bits, GROUP)
    scale = Nearest().round(weight, width).scale.double()
    order = column_order(moments.hessian, activation)
    factor = error_factor(moments.hessian.double(), 0.01, order)
    found = feed_back(weight.double(), scale, factor, width, order)
    wanted = naive_codes(weight, scale, damped(moments.hessian, 0.01), width, order)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_never_worse_than_nearest_codes_on_the_same_scales(bits: int) -> None:
    weight, moments = layer(10 + bits)
    width = grid_width(bits, GROUP)
    plain = Gptq(rounds=0, correction=0.0).round(weight, width, moments)
    scales = spread(plain.scale, COLUMNS)
    nearest = (weight / scales).round().clamp(width.lowest, width.highest) * scales
    error = row_error(weight, plain.dequantize(torch.float32), moments.hessian).sum()
    assert error < row_error(weight, nearest, moments.hessian).sum()


def test_every_step_of_the_refinement_lowers_the_error_of_every_row() -> None:
    weight, moments = layer(3)
    width, hessian = grid_width(2, GROUP), moments.hessian
    start = Gptq(rounds=0, correction=0.0).round(weight, width, moments)
    codes, scale = start.codes.float(), start.scale.float()
    errors = [row_error(weight, codes * spread(scale, COLUMNS), hessian)]
    for _ in range(3):
        scale = fit_scales(weight, codes, scale, hessian, torch.bfloat16)
        errors.append(row_error(weight, codes * spread(scale, COLUMNS), hessian))
        codes = descend(weight, codes, scale, hessian, width, 2)
        errors.append(row_error(weight, codes * spread(scale, COLUMNS), hessian))
    falling = torch.stack(errors)
    assert (falling[1:] <= falling[:-1] * (1 + 1e-5)).all()
    assert falling[-1].sum() < 0.9 * falling[0].sum()
    assert torch.equal(scale, scale.bfloat16().float())


def test_fitted_scales_are_the_least_squares_solution() -> None:
    weight, moments = layer(4)
    codes = torch.randint(-2, 2, weight.shape, generator=torch.Generator().manual_seed(0)).float()
    codes[:, :GROUP] = 0  # a group without codes keeps its scale
    scale = torch.full((ROWS, COLUMNS // GROUP), 0.5)
    fitted = fit_scales(weight, codes, scale, moments.hessian, torch.float32)
    assert torch.equal(fitted[:, 0], scale[:, 0])
    fitted = fitted.requires_grad_()
    row_error(weight, codes * spread(fitted, COLUMNS), moments.hessian).sum().backward()
    assert fitted.grad is not None
    assert fitted.grad.abs().max() < 1e-2 * row_error(weight, 0 * weight, moments.hessian).mean()


def test_coordinate_descent_stops_where_no_single_code_can_do_better() -> None:
    weight, moments = layer(5)
    width = grid_width(3, GROUP)
    scale = Nearest().round(weight, width).scale
    codes = descend(weight, torch.zeros_like(weight), scale, moments.hessian, width, 200)
    best = row_error(weight, codes * spread(scale, COLUMNS), moments.hessian)
    for column in range(0, COLUMNS, 7):
        for step in (-1, 1):
            moved = codes.clone()
            moved[:, column] = (moved[:, column] + step).clamp(width.lowest, width.highest)
            error = row_error(weight, moved * spread(scale, COLUMNS), moments.hessian)
            assert (error >= best * (1 - 1e-5)).all()


def test_the_corrected_target_minimises_the_distance_to_full_precision_outputs() -> None:
    weight, moments = layer(6)
    assert moments.cross is not None
    target = corrected(weight, moments, 1.0, 1e-9).double()
    # the gradient of E|T x - W f|^2 = tr(T H T') - 2 tr(W C T') + const
    gradient = target @ moments.hessian.double() - weight.double() @ moments.cross.double()
    assert gradient.abs().max() < 1e-3
    assert torch.equal(corrected(weight, moments, 0.0, 0.01), weight)
    same = Moments(moments.hessian, moments.hessian, moments.tokens)
    assert torch.allclose(corrected(weight, same, 1.0, 0.01), weight, atol=1e-6)


def test_evidence_names_the_damping_and_what_the_refinement_gained() -> None:
    weight, moments = layer(7)
    found = Gptq().round(weight.bfloat16(), grid_width(2, GROUP), moments)
    assert found.evidence["damping"] in Gptq().dampings
    assert found.evidence["error_share"] < found.evidence["error_share_loop"] < 1
    assert found.codes.min() >= -2
    assert found.codes.max() <= 1
    assert found.scale.dtype == torch.bfloat16


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weight, moments = layer(8)
    hessian = moments.hessian.clone()
    hessian[:, 40:80] = 0
    hessian[40:80] = 0
    found = Gptq().round(weight, grid_width(2, GROUP), Moments(hessian, None, 1))
    assert found.dequantize(torch.float32).isfinite().all()
    nothing = Gptq().round(weight, grid_width(2, GROUP), Moments(torch.zeros_like(hessian), None, 1))
    assert nothing.dequantize(torch.float32).isfinite().all()


@pytest.mark.parametrize("below", [0.05, 0.5, 50.0])
def test_a_hessian_that_rounding_left_indefinite_is_damped_more(below: float) -> None:
    """Some inputs thousands of times larger than the others: seen in the last linears of Qwen2.5-1.5B's blocks."""
    weight, moments = layer(11)
    hessian = moments.hessian.clone()
    hessian[7, 7] = -below * hessian.diagonal().mean()
    found = Gptq().round(weight, grid_width(2, GROUP), Moments(hessian, None, 1))
    assert found.dequantize(torch.float32).isfinite().all()
    assert found.evidence["damping"] > max(below, *Gptq().dampings)


def test_no_moments_are_refused() -> None:
    with pytest.raises(InputError, match="needs calibration text"):
        Gptq().round(torch.ones(4, GROUP), grid_width(2, GROUP))


def test_linears_of_one_input_share_what_is_made_of_its_moments() -> None:
    weight, moments = layer(9)
    width = grid_width(2, GROUP)
    alone = [Gptq().round(part, width, Moments(moments.hessian, moments.cross, 1)) for part in (weight, 2 * weight)]
    together = [Gptq().round(part, width, moments) for part in (weight, 2 * weight)]
    made = set(moments.kept)
    assert {key[0] for key in made} == {"order", "factor", "shift"}
    assert len(made) == 2 + len(Gptq().dampings)
    assert all(torch.equal(first.codes, other.codes) for first, other in zip(alone, together, strict=True))


def test_the_factor_is_the_upper_root_of_the_inverse() -> None:
    _, moments = layer(10)
    order = column_order(moments.hessian, True)
    factor = error_factor(moments.hessian.double(), 0.01, order)
    assert torch.equal(factor, factor.triu())
    wide = damped(moments.hessian, 0.01)[order][:, order]
    assert torch.allclose(factor.T @ factor @ wide, torch.eye(COLUMNS, dtype=torch.float64), atol=1e-6)


def test_scales_are_fitted_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = layer(11)
    codes = torch.randint(-2, 2, weight.shape, generator=torch.Generator().manual_seed(0)).float()
    scale = torch.full((ROWS, COLUMNS // GROUP), 0.5)
    whole = fit_scales(weight, codes, scale, moments.hessian, torch.float32)
    monkeypatch.setattr("apportion.bits.rounding.refine.SYSTEM_BYTES", 5 * 8 * (COLUMNS // GROUP) ** 2)
    parts = fit_scales(weight, codes, scale, moments.hessian, torch.float32)
    assert torch.allclose(whole, parts, rtol=1e-3)
