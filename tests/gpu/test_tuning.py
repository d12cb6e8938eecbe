"""Recorded steps of tuning are the plain ones (run where a CUDA device is)."""

import pytest
import torch

from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.bits.rounding import distil
from apportion.bits.rounding.descent import Descent
from apportion.bits.rounding.lesson import lesson_of
from apportion.bits.rounding.tuning import tune
from apportion.core.device import place
from apportion.models.load import load_staged
from tests.learned import WINDOWS, rounded_to, wrong_at
from tests.recipes import small
from tests.tiny_models import KINDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def tuned(model, steps=12):
    staged = load_staged(model, place("cuda", "float32"))
    return tune(staged, rounded_to(staged, 2), lesson_of(staged, WINDOWS, steps, codes=True))


@pytest.mark.parametrize("goes_back", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_learn_what_plain_ones_learn(checkpoint, kind, monkeypatch, goes_back):
    if goes_back:  # to what was learned by then
        monkeypatch.setattr("apportion.bits.rounding.descent.WARM_STEPS", 1)
        wrong_at(monkeypatch, 6)
    recorded = tuned(str(checkpoint(kind)))
    assert bool(recorded.slowed) == goes_back
    assert recorded.execution == "recorded"
    made = Descent.__init__

    def plainly(descent, *given):
        made(descent, *given)
        descent.recorder = None

    monkeypatch.setattr(Descent, "__init__", plainly)
    plain = tuned(str(checkpoint(kind)))
    assert plain.execution == "plain"
    assert recorded.slowed == plain.slowed == (6,) * goes_back
    assert recorded.steps == plain.steps == 12
    assert recorded.after == pytest.approx(plain.after, rel=1e-3)
    assert recorded.after < recorded.before


def test_a_step_that_waits_for_the_device_is_run_plainly_and_the_result_says_so(checkpoint, monkeypatch):
    gradient = distil.predictions_gradient

    def waits(staged, weights, hidden, *given):
        float(hidden.sum())
        return gradient(staged, weights, hidden, *given)

    recorded = tuned(str(checkpoint("llama")))
    monkeypatch.setattr(distil, "predictions_gradient", waits)
    found = tuned(str(checkpoint("llama")))
    assert found.execution.startswith("plain: ")
    assert found.after == pytest.approx(recorded.after, rel=1e-3)


def test_a_folder_is_compared_on_one_device_whatever_it_was_measured_on(checkpoint, tmp_path):
    """In bfloat16 two devices may differ by nats on a text of special tokens, though the weights are the same."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(map(str, range(1000, 2200))))
    ask = QuantizeRequest(avg_bits=2.5, evaluations=20, finalists=1, device="cuda")
    recipe = small(text, players="linears", widths=(2, 3, 4), permutations=0, tune=8, codes=True)
    result = quantize(str(checkpoint("llama", blocks=2)), tmp_path / "q", ask, recipe)
    assert result["tuned"]["execution"] == "recorded"
    assert result["reload_difference"] == 0
