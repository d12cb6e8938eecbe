"""Where learning is worth nothing it goes back to the best state, and on more slowly."""

import math
from dataclasses import replace

import pytest
import torch

from apportion.bits.rounding import distil, looks, tuning
from apportion.bits.rounding.descent import Descent, Micro
from apportion.bits.rounding.latent import FINER, Latents, StraightThrough
from apportion.bits.rounding.lesson import lesson_of
from apportion.bits.rounding.recorded import Recorder
from apportion.bits.rounding.tuning import tune
from apportion.core.device import place
from apportion.core.errors import OutOfMemoryError
from apportion.models.load import load_staged
from tests.learned import WINDOWS, rounded_to, same_weights, steps_of, wrong_at


@pytest.mark.parametrize(("codes", "rate"), [(False, 1.0), (True, 1.0)])
def test_rates_under_which_all_goes_wrong_are_slowed_until_something_is_gained(checkpoint, monkeypatch, codes, rate):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded = rounded_to(staged, 3)
    lesson = lesson_of(staged, WINDOWS, 40, codes=codes)
    monkeypatch.setattr("apportion.bits.rounding.latent.GAIN_RATE", rate)
    slowed = tune(staged, rounded, lesson)
    assert slowed.slowed
    assert slowed.steps > slowed.slowed[-1]
    assert slowed.after < slowed.before
    monkeypatch.setattr("apportion.bits.rounding.descent.SLOWER", 1.0)
    fast = tune(staged, rounded, lesson)
    assert fast.after > slowed.after


@pytest.mark.parametrize("codes", [False, True])
def test_a_run_that_is_killed_after_it_went_back_to_something_learned_goes_on_to_the_same_weights(
    checkpoint, tmp_path, monkeypatch, codes
):
    monkeypatch.setattr(looks, "KEEP_BYTES_S", math.inf)
    monkeypatch.setattr("apportion.bits.rounding.descent.WARM_STEPS", 1)
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 2), lesson_of(staged, WINDOWS, 20, codes=codes)
    wrong_at(monkeypatch, 10)
    whole = tune(staged, rounded, lesson)
    assert whole.slowed == (10,)
    assert whole.steps > 10
    taken = steps_of(monkeypatch, dies_at=12)
    with pytest.raises(KeyboardInterrupt):
        tune(staged, rounded, lesson, tmp_path)
    again = tune(staged, rounded, lesson, tmp_path)
    assert taken == [*range(12), *range(10, 20)]
    assert (again.looks, again.slowed, again.steps) == (whole.looks, whole.slowed, whole.steps)
    assert same_weights(whole.packed, again.packed)


@pytest.mark.parametrize("codes", [False, True])
def test_where_the_loss_is_not_finite_it_goes_back_and_learns_on(checkpoint, monkeypatch, codes):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 2), lesson_of(staged, WINDOWS, 24, codes=codes)
    monkeypatch.setattr("apportion.bits.rounding.descent.WARM_STEPS", 1)
    steps = []

    def once_wrong(*given):
        steps.append(gradient(*given))
        for leaf in given[1].values():
            leaf.grad.mul_(math.nan if len(steps) == 3 else 1.0)  # every weight is lost with the third step
        return steps[-1]

    gradient = distil.predictions_gradient
    monkeypatch.setattr(distil, "predictions_gradient", once_wrong)
    tuned = tune(staged, rounded, lesson)
    assert tuned.slowed == (6,)
    assert tuned.diverged is None
    assert tuned.steps == 24
    assert tuned.after < tuned.before


def test_where_a_look_finds_no_memory_what_is_recorded_goes_and_then_it_is_a_clear_error(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    latents = Latents(rounded_to(staged, 2), staged.originals, "cpu", StraightThrough)
    descent, found = Descent(latents, 8, torch.float32, Micro(4)), latents.found
    descent.recorder = Recorder([torch.zeros(1)])

    def tight():
        if not descent.recorder.failure:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found()

    monkeypatch.setattr(latents, "found", tight)
    assert same_weights(descent.found(), found())
    assert descent.execution == "plain: memory ran out"

    def too_small(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(latents, "begin", too_small)
    with pytest.raises(OutOfMemoryError, match="looked at"):
        descent.go_back(found(), staged.originals)


@pytest.mark.parametrize("codes", [False, True])
def test_scales_move_more_finely_in_many_steps_and_in_large_models(checkpoint, monkeypatch, codes):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 3), lesson_of(staged, WINDOWS, 2, codes=codes)
    weights = sum(math.prod(item.shape) for item in rounded.values())
    for large, steps, wanted in ((weights, 2, 1.0), (weights, 400, 0.5), (weights, 10_000, FINER), (1, 2, FINER)):
        monkeypatch.setattr("apportion.bits.rounding.latent.LARGE", large)
        make, _ = tuning.what_fits(staged, rounded, replace(lesson, steps=steps))
        assert Latents(rounded, staged.originals, "cpu", make).codes[0].start.finer == wanted
