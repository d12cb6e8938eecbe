"""Codes and scales that move: what a step moves, what is begun anew, where it lies."""

import pytest
import torch

from apportion.bits.rounding import distil, round_plan, tuning
from apportion.bits.rounding.descent import Descent, Micro
from apportion.bits.rounding.latent import FINER, Latents, Start, StraightThrough
from apportion.bits.rounding.lesson import lesson_of
from apportion.bits.rounding.nearest import Nearest
from apportion.core.device import place
from apportion.formats import grid_width
from apportion.models.load import load_staged
from tests.learned import WINDOWS, rounded_to, same_weights


@pytest.mark.parametrize("codes", [False, True])
def test_to_go_back_is_to_begin_from_other_weights_with_nothing_remembered(checkpoint, codes):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    mixed = [grid_width(2, 32), grid_width(3, 16), grid_width(4, 32)]
    widths = {path: mixed[number % 3] for number, path in enumerate(staged.originals)}
    rounded = round_plan(staged, Nearest(), widths)
    lesson = lesson_of(staged, WINDOWS, 8, codes=codes)
    task = distil.Predictions(staged, lesson)

    def descent_from(items):
        make, _ = tuning.what_fits(staged, rounded, lesson)
        return Descent(Latents(items, staged.originals, "cpu", make), 8, torch.float32, Micro(4))

    used, fresh = descent_from(rounded), descent_from(rounded)
    places = {name: value.data_ptr() for name, value in used.tensors().items()}
    for step in range(3):
        used.step(task, torch.arange(4) + step)
    other = used.latents.found()
    assert not same_weights(other, rounded)
    used.go_back(rounded, staged.originals)
    assert same_weights(used.latents.found(), rounded)
    assert used.latents.codes[0].gain.count_nonzero() == 0
    assert {name: value.data_ptr() for name, value in used.tensors().items()} == places  # a recording reads them there
    fresh.slow_down(3)
    fresh.done = 3
    for batch in (torch.arange(4), torch.arange(4) + 8):
        assert used.step(task, batch) == fresh.step(task, batch)
    assert same_weights(used.latents.found(), fresh.latents.found())
    used.go_back(other, staged.originals)
    assert same_weights(used.latents.found(), other)


def test_the_room_that_steps_take_is_taken_before_the_first(checkpoint):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    lesson = lesson_of(staged, WINDOWS, 8, codes=True)
    latents = Latents(rounded_to(staged, 2), staged.originals, "cpu", StraightThrough)
    descent = Descent(latents, 8, torch.float32, Micro(4))
    before = {name: value.data_ptr() for name, value in descent.tensors().items()}
    descent.step(distil.Predictions(staged, lesson), torch.arange(4))
    assert {name: value.data_ptr() for name, value in descent.tensors().items()} == before
    assert {name.split(".")[-1] for name in before} == {"value", "step", "exp_avg", "exp_avg_sq", "scale"}


def test_before_the_first_step_the_weights_are_those_that_were_rounded(checkpoint):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded = rounded_to(staged, 2)
    latents = Latents(rounded, staged.originals, "cpu", StraightThrough)
    decoded = latents.weights(torch.float32, 0.0)
    assert all(torch.equal(decoded[path], item.dequantize(torch.float32)) for path, item in rounded.items())
    assert same_weights(rounded, latents.found())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_gradient_of_gains_is_that_of_autograd(bits):
    start = start_at(torch.randint(-2, 2, (5, 8), generator=torch.Generator().manual_seed(0)), bits)
    codes = StraightThrough(start)
    wanted = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    (codes.decode(torch.float32, 0.0) * wanted).sum().backward()
    gain = torch.zeros(5, 1, requires_grad=True)
    (start.codes.float() * start.scale * (gain * 2 ** (2 - bits)).exp() * wanted).sum().backward()
    assert torch.allclose(codes.gain.grad, gain.grad)
    assert torch.allclose(codes.position.grad, wanted * start.scale)  # as if nothing were rounded


@pytest.mark.parametrize("finer", [1.0, FINER])
def test_a_step_of_a_gain_moves_the_outermost_weight_by_as_much_of_a_code_at_every_width(finer):
    """In large models by a fifth of it beyond 2 bits."""
    moved = []
    for bits in (2, 3, 4, 8):
        codes = StraightThrough(start_at(torch.full((5, 8), -(2 ** (bits - 1))), bits), finer=finer)
        optimizer = codes.optimizer()
        before = codes.decode(torch.float32, 0.0).detach()
        codes.decode(torch.float32, 0.0).sum().backward()
        codes.position.grad = None
        optimizer.step()
        told = finer if bits > 2 else 1.0
        moved.append((codes.decode(torch.float32, 0.0) - before) / codes.start.scale / told)
    assert all(torch.allclose(one.abs(), torch.tensor(2 * 0.01), rtol=0.01) for one in moved)


def start_at(codes, bits=2):
    scale = torch.linspace(-0.5, 0.7, len(codes))[:, None]
    low, high = torch.full_like(scale, -(2 ** (bits - 1))), torch.full_like(scale, 2 ** (bits - 1) - 1)
    return Start(codes.to(torch.int8), scale, low, high, codes.bfloat16())
