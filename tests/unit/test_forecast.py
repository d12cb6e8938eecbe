"""What is left in all: told by what was measured of earlier work, and said by every bar."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.bits import quantize as quantizing
from apportion.bits import time_left
from apportion.bits.game import COALITIONS
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.request import QuantizeRequest
from apportion.bits.rounding import BATCH_TOKENS, FULL_PRECISION, IN_SEQUENCE, TUNING, step_seconds
from apportion.bits.time_left import (
    BACKWARD,
    COLUMNS,
    ONE_WIDTH,
    PASSES,
    SHARE,
    SHARED,
    foresee,
    foretell,
    tuning_step_s,
)
from apportion.core import progress as bars
from apportion.core.device import place
from apportion.core.progress import expect, expect_units, forecast, progress, spent_s
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.structure import head_weights
from tests.recipes import small


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds on the clock; tests move it."""
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


def test_bars_say_what_is_left_in_all(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with forecast():
        with progress("first", 4, "units") as advance:
            clock[0] += 10
            advance(4)
        assert spent_s("first") == 10
        expect("second", 100)
        expect("third", 3600)
        capsys.readouterr()
        with progress("second", 10, "units") as advance:
            clock[0] += 10
            advance()
        assert capsys.readouterr().err == "second: 1/10 units, 0.1/s, 1m30s left, about 1h01m in all\n"
        with progress("fourth", 2, "units") as advance:
            clock[0] += 20
            advance()
        assert capsys.readouterr().err.endswith(", about 1h01m in all\n")  # 20 s, 90 of the second's 100, 3600
        with progress("second", 1, "units") as advance:
            clock[0] += 500
            advance()
        capsys.readouterr()
        with progress("fourth", 2, "units") as advance:
            clock[0] += 30
            advance()
        assert capsys.readouterr().err.endswith(", about 1h00m in all\n")  # later than foreseen is nothing, not less


def test_units_that_are_done_tell_how_long_the_others_take(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice 100 steps were taken to last 2 s each; they last half a second, and an earlier run did 50."""
    with forecast():
        expect("third", 60)
        expect("steps", 400, 200)
        with progress("steps", 100, "steps", done=50) as advance:
            clock[0] += 5
            advance(10)
            assert capsys.readouterr().err.endswith("20s left, about 2m10s in all\n")  # 140 steps and the third
            clock[0] += 20
            advance(40)
        with progress("fourth", 2, "units") as advance:
            clock[0] += 60
            advance()
        assert capsys.readouterr().err.endswith("about 2m50s in all\n")  # 60 of its own, 60, 100 steps
        expect_units("steps", 20)
        with progress("fourth", 2, "units") as advance:
            clock[0] += 60
            advance()
        assert capsys.readouterr().err.endswith("about 2m10s in all\n")
        expect_units("third", 5)
        assert bars._FORECAST.get().expected["third"] == 60  # type: ignore[union-attr]


@pytest.mark.parametrize(("done", "made", "left_s"), [(100, 0, 200), (0, 25, 50), (75, 25, 50), (0, 100, 50)])
def test_work_that_an_earlier_run_did_or_that_ended_early_is_not_to_come(
    clock: list[float], done: int, made: int, left_s: float
) -> None:
    """Two plans of 100 steps, 2 s a step by guess and half a second in truth; what is left is the second plan."""
    with forecast():
        expect("steps", 400, 200)
        with progress("steps", 100, "steps", done=done) as advance:
            clock[0] += made / 2
            advance(made)
        assert bars._FORECAST.get().expected["steps"] == left_s  # type: ignore[union-attr]
        with progress("steps", 100, "steps", done=50) as advance:
            clock[0] += 25
            advance(50)
        assert bars._FORECAST.get().expected["steps"] == 0  # type: ignore[union-attr]


def test_on_a_gpu_learning_takes_what_recorded_steps_take(
    clock: list[float], checkpoint: Callable[..., Path], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(checkpoint("llama", blocks=2))
    recipe = small(text_file, windows=4, window_tokens=64, tune=100)
    quantizer = Quantizer(load_staged(model, place("cpu", "float32")), load_tokenizer(model), recipe)
    staged = quantizer.staged
    weights, head = sum(weight.numel() for weight in staged.originals.values()), staged.model.lm_head.weight.numel()
    monkeypatch.setattr(staged, "placement", replace(staged.placement, device="cuda:1"))
    assert tuning_step_s(quantizer, 7.0) == step_seconds(weights, head) > step_seconds(weights, 0) > 0


def test_outside_a_forecast_nothing_is_foreseen(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    expect("second", 100)
    with progress("second", 10, "units") as advance:
        clock[0] += 10
        advance()
    assert "in all" not in capsys.readouterr().err
    assert spent_s("second") == 0


def test_what_a_search_took_tells_how_long_the_rest_takes(
    clock: list[float], checkpoint: Callable[..., Path], text_file: Path
) -> None:
    """The first pass of all, in which libraries set themselves up, took 60 s; later ones took 1."""
    model, tokens = str(checkpoint("llama", blocks=2)), BATCH_TOKENS["cpu"]
    recipe = small(text_file, windows=4, window_tokens=tokens // 4, tune=100)
    quantizer = Quantizer(load_staged(model, place("cpu", "float32")), load_tokenizer(model), recipe)
    expected: list[dict[str, float]] = []
    with forecast():
        with progress(FULL_PRECISION, 1, "windows"):
            clock[0] += 60
        foresee(quantizer, evaluations=50, finalists=2)
        expected.append(dict(bars._FORECAST.get().expected))  # type: ignore[union-attr]
        with progress(COALITIONS, 1, "block forwards"):
            clock[0] += 50 * SHARED
        foresee(quantizer, evaluations=0, finalists=2, measured=50)
        expected.append(dict(bars._FORECAST.get().expected))  # type: ignore[union-attr]
    first, then = expected
    assert first[TUNING] == pytest.approx(60 * then[TUNING])
    assert then[TUNING] == pytest.approx(2 * 100 * BACKWARD)  # a step sees as many tokens as the text has
    assert then[COALITIONS] == 0


def opened(checkpoint: Callable[..., Path], text: Path, **asked: Any) -> Quantizer:
    model = str(checkpoint("llama", blocks=2))
    recipe = small(text, windows=4, window_tokens=64, **asked)
    return Quantizer(load_staged(model, place("cpu", "float32")), load_tokenizer(model), recipe)


@pytest.mark.parametrize(("rounding", "times"), [("nearest", 0.0), ("gptq", 1 + 3 * ONE_WIDTH)])
def test_before_anything_is_measured_a_cpus_speed_tells_how_long_it_all_takes(
    clock: list[float],
    checkpoint: Callable[..., Path],
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rounding: str,
    times: float,
) -> None:
    """A machine on which a pass of the text's 256 tokens takes 100 s; rounding sees twice as many."""
    quantizer = opened(checkpoint, text_file, rounding=rounding, rounding_windows=8)
    linears = quantizer.staged.originals
    weights = sum(item.numel() for item in linears.values()) + quantizer.staged.model.lm_head.weight.numel()
    monkeypatch.setattr(time_left, "product_speed", lambda _: 2 * weights * 256 / 100 / SHARE)
    with forecast():
        total_s = foretell(quantizer, evaluations=60, finalists=3)
        expected = dict(bars._FORECAST.get().expected)  # type: ignore[union-attr]
        assert sum(expected.values()) == pytest.approx(total_s)
        assert expected[COALITIONS] == pytest.approx(60 * 100 * SHARED)
        pairs = sum(item.shape[0] * item.shape[1] ** 2 for item in linears.values())
        columns_s = COLUMNS * pairs * 100 / (2 * weights * 256)
        assert expected[IN_SEQUENCE] == pytest.approx(times * (PASSES * 200 + columns_s))
        said = capsys.readouterr().err
        assert said.startswith("note: about ") == (rounding == "gptq")  # 3,000 s are not worth a word
        with progress(IN_SEQUENCE, len(linears), "linears") as advance:
            clock[0] += 60
            advance()
        assert capsys.readouterr().err.endswith(" in all\n")


def test_on_a_gpu_and_outside_a_forecast_nothing_is_told_beforehand(
    checkpoint: Callable[..., Path],
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantizer = opened(checkpoint, text_file, rounding="gptq")
    assert foretell(quantizer, evaluations=10**12, finalists=3) > 0
    assert not capsys.readouterr().err
    staged = quantizer.staged
    monkeypatch.setattr(staged, "placement", replace(staged.placement, device="cuda:0"))
    with forecast():
        assert foretell(quantizer, evaluations=10**12, finalists=3) == 0
        assert not bars._FORECAST.get().expected  # type: ignore[union-attr]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_steps_are_counted_with_the_heads_weights_tied_or_not(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(quantizing, "best_affordable", lambda *given, **named: seen.append((given, named)))
    quantizer = quantizing.open_affordable(str(checkpoint(kind)), Recipe(), QuantizeRequest(device="cpu"))
    config = quantizer.staged.model.config
    ((given, named),) = seen
    assert named["head"] == config.vocab_size * config.hidden_size
    assert given[1] == sum(weight.numel() for weight in quantizer.staged.originals.values())
    assert head_weights(torch.nn.Linear(2, 2), "") == 0
