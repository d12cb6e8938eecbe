"""Recorded blocks give the values of plain ones (run where a CUDA device is)."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from apportion.bits.compare.gradients import weight_gradients
from apportion.bits.game import MeasuredGame, engine, naive_values
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.core.device import place
from apportion.models.load import load_staged
from apportion.models.mixture import read_mixture
from apportion.models.pretrained import load_tokenizer
from tests.tiny_models import KINDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("kind", KINDS)
def test_replayed_values_equal_naive_ones(kind: str, checkpoint: Callable[..., Path], text_file: Path) -> None:
    model = str(checkpoint(kind, blocks=4))
    staged, tokenizer = load_staged(model, place("cuda", "float32")), load_tokenizer(model)
    windows = read_mixture(text_file, tokenizer, 32).draw(3, seed=0)
    bank = Quantizer(staged, tokenizer, Recipe(group_size=32)).bank
    game = MeasuredGame(bank, windows)
    every = list(product((0, 1), repeat=4))
    found = game.values(every)
    assert isinstance(game._engine, engine.ReplayEngine)
    assert game._engine.mode == "replay"
    assert game._engine.recorded == 9
    assert np.allclose(found.mean(1), naive_values(bank, windows, every), rtol=1e-5)
    assert np.array_equal(MeasuredGame(bank, windows).values(every[::-1]), found[::-1])


@pytest.mark.parametrize("rounding", ["quanto", "hqq"])
def test_weights_that_a_library_decodes_are_there_when_a_recording_reads_them(
    rounding: str, checkpoint: Callable[..., Path], text_file: Path
) -> None:
    pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[rounding])
    model = str(checkpoint("llama", blocks=3))
    staged, tokenizer = load_staged(model, place("cuda", "float32")), load_tokenizer(model)
    windows = read_mixture(text_file, tokenizer, 32).draw(3, seed=0)
    bank = Quantizer(staged, tokenizer, Recipe(group_size=32, rounding=rounding)).bank
    every = list(product((0, 1), repeat=3))
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.empty(1 << 28, dtype=torch.uint8, device="cuda").fill_(7)  # what nothing was written to yet is no zeros
    found = MeasuredGame(bank, windows).values(every)
    bank.cache.weights.clear()
    assert np.allclose(found.mean(1), naive_values(bank, windows, every), rtol=1e-5)


def test_values_after_gradients_are_those_of_a_game_that_knows_of_none(
    checkpoint: Callable[..., Path], text_file: Path
) -> None:
    """Gradients are made in float32, and graphs that were recorded before read norms where they were."""
    model = str(checkpoint("qwen3", blocks=3))
    staged, tokenizer = load_staged(model, place("cuda", "bfloat16")), load_tokenizer(model)
    windows = read_mixture(text_file, tokenizer, 32).draw(3, seed=0)
    bank = Quantizer(staged, tokenizer, Recipe(group_size=32)).bank
    every, game = list(product((0, 1), repeat=3)), MeasuredGame(bank, windows)
    game.values(every[::3])
    weight_gradients(staged, windows.windows)
    torch.cuda.empty_cache()
    torch.empty(1 << 28, dtype=torch.uint8, device="cuda").fill_(7)
    assert np.array_equal(game.values(every), MeasuredGame(bank, windows).values(every))


def test_replayed_values_by_full_precisions_predictions_equal_plain_ones(
    checkpoint: Callable[..., Path], text_file: Path
) -> None:
    model = str(checkpoint("llama", blocks=2))
    staged, tokenizer = load_staged(model, place("cuda", "float32")), load_tokenizer(model)
    quantizer = Quantizer(staged, tokenizer, Recipe(group_size=32, labels="predictions"))
    windows = read_mixture(text_file, tokenizer, 32).draw(3, seed=0)
    teacher = quantizer.teacher(windows.windows)
    every = list(product((0, 1), repeat=2))
    game = MeasuredGame(quantizer.bank, windows, teacher=lambda: teacher)
    found = game.values(every)
    assert game._engine is not None
    assert game._engine.mode == "replay"
    plain = MeasuredGame(quantizer.bank, windows, teacher=lambda: teacher)
    plain._engine = engine.PlainEngine(quantizer.bank, staged.embed(windows.windows), windows.windows.cuda(), teacher)
    assert np.allclose(found, plain.values(every), rtol=1e-5)
