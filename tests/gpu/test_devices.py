"""What is recorded belongs to the model's own device, which need not be the current one (two CUDA devices)."""

from functools import partial

import numpy as np
import pytest
import torch

from apportion.bits.game import MeasuredGame, engine
from apportion.bits.quantizer import Quantizer
from apportion.bits.rounding import lesson, round_plan, rounding_named
from apportion.bits.rounding.lesson import lesson_of
from apportion.bits.rounding.tuning import tune
from apportion.core.device import peak_memory, place
from apportion.formats import grid_width
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from tests.learned import WINDOWS
from tests.recipes import small

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")]
EVERY = [(0, 0), (0, 1), (1, 0), (1, 1)]


def played(model: str, text: object, device: str) -> np.ndarray:
    staged = load_staged(model, place(device, "float32"))
    quantizer = Quantizer(staged, load_tokenizer(model), small(text, labels="predictions"))
    windows = quantizer.chosen(3)
    game = MeasuredGame(quantizer.bank, windows, teacher=partial(quantizer.teacher, windows.windows))
    values = game.values(EVERY)
    assert isinstance(game._engine, engine.ReplayEngine)
    assert game._engine.mode == "replay"
    assert np.array_equal(MeasuredGame(game.bank, windows, teacher=game.teacher).values(EVERY[::-1]), values[::-1])
    return values


def test_a_game_on_the_second_device_has_the_values_of_the_first(checkpoint, text_file):
    model = str(checkpoint("llama", blocks=2))
    first, second = (played(model, text_file, device) for device in ("cuda:0", "cuda:1"))
    np.testing.assert_allclose(first, second, rtol=1e-5)
    assert np.ptp(first.mean(1)) > 1e-4


def test_tuning_on_the_second_device_learns_what_the_first_learns(checkpoint):
    found = []
    for device in ("cuda:0", "cuda:1"):
        staged = load_staged(str(checkpoint("llama")), place(device, "float32"))
        rounded = round_plan(
            staged, rounding_named("gptq"), dict.fromkeys(staged.originals, grid_width(2, 32)), WINDOWS
        )
        found.append(tune(staged, rounded, lesson_of(staged, WINDOWS, 12, codes=True)))
    assert (peak_memory() or 0) >= torch.cuda.max_memory_allocated("cuda:1") > 0
    assert [item.execution for item in found] == ["recorded", "recorded"]
    assert found[0].after == pytest.approx(found[1].after, rel=1e-3)
    assert found[1].after < found[1].before


def test_hidden_states_that_would_crowd_the_device_are_kept_on_the_cpu(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cuda:1", "float32"))
    monkeypatch.setattr(lesson, "free_bytes", lambda device: 0)
    found = lesson.full_precision_hidden(staged, WINDOWS[:5])
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, staged.last_hidden(WINDOWS[:5]).cpu())
