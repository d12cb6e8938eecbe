"""What is left in all: told by what was measured of earlier work, and said by every bar."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.bits import quantize as quantizing
from apportion.bits import time_left
from apportion.bits.finalists import JUDGES, WRITTEN
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
    ROWS,
    SHARE,
    SHARED,
    foresee,
    foresee_the_end,
    foretell,
    head_seconds,
    product_speed,
    tuning_step_s,
    weights_of_a_token,
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
    clock: list[float], checkpoint: Callable[..., Path], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass of all, in which libraries set themselves up, took 60 s; a later text would take 1.

    On a CPU the first pass tells nothing, and what a search or a rounding has not told stays as it was."""
    tokens = BATCH_TOKENS["cpu"]
    quantizer = opened(checkpoint, text_file, window_tokens=tokens // 4, tune=100)
    blocks, heads = weights_of_a_token(quantizer)
    alone = (SHARED * blocks + heads) / (blocks + heads)
    expected: list[dict[str, float]] = []
    with forecast():
        for label in (TUNING, WRITTEN, IN_SEQUENCE):
            expect(label, 7)
        with progress(FULL_PRECISION, 1, "windows"):
            clock[0] += 60
        foresee(quantizer, evaluations=50, finalists=2)
        expected.append(dict(bars._FORECAST.get().expected))  # type: ignore[union-attr]
        with progress(COALITIONS, 1, "block forwards"):
            clock[0] += 50 * alone
        foresee(quantizer, evaluations=20, finalists=2, measured=50)
        expected.append(dict(bars._FORECAST.get().expected))  # type: ignore[union-attr]
        monkeypatch.setattr(quantizer.staged, "placement", replace(quantizer.staged.placement, device="cuda:0"))
        foresee(quantizer, evaluations=50, finalists=2)
        expected.append(dict(bars._FORECAST.get().expected))  # type: ignore[union-attr]
        foresee_the_end()
        assert not any(bars._FORECAST.get().expected.values())  # type: ignore[union-attr]
    first, then, on_gpu = expected
    assert (first[TUNING], first[WRITTEN], first[IN_SEQUENCE]) == (7, 7, 7)
    assert then[TUNING] == pytest.approx(2 * 100 * BACKWARD)  # a step sees as many tokens as the text has
    assert then[WRITTEN] == pytest.approx(2 * (1 + JUDGES))
    assert then[COALITIONS] == pytest.approx(20 * alone)
    assert then[IN_SEQUENCE] == 7
    assert on_gpu[COALITIONS] == pytest.approx(50 * 60 * alone)


def opened(checkpoint: Callable[..., Path], text: Path | None, kind: str = "llama", **asked: Any) -> Quantizer:
    model = str(checkpoint(kind, blocks=2))
    recipe = small(text, **{"windows": 4, "window_tokens": 64, **asked})
    return Quantizer(load_staged(model, place("cpu", "float32")), load_tokenizer(model), recipe)


@pytest.mark.parametrize(("rounding", "times"), [("nearest", 0.0), ("gptq", 1 + 3 * ONE_WIDTH)])
@pytest.mark.parametrize("own", [False, True])
def test_before_anything_is_measured_a_cpus_speed_tells_how_long_it_all_takes(
    clock: list[float],
    checkpoint: Callable[..., Path],
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rounding: str,
    times: float,
    own: bool,
) -> None:
    """A machine on which blocks take 100 s of the text's 256 tokens, the head 28; 10 coalitions are measured already.

    Rounding sees twice as many windows where a text has them; a model that writes its own has as many as the game."""
    text = None if own else text_file
    quantizer = opened(checkpoint, text, rounding=rounding, rounding_windows=8, tune=50)
    linears = quantizer.staged.originals
    weights = sum(item.numel() for item in linears.values())
    speed = 2 * weights * 256 / 100 / SHARE
    speeds = {None: speed, torch.float32: speed, torch.bfloat16: speed}
    monkeypatch.setattr(time_left, "product_speed", lambda _, dtype=None: speeds[dtype])
    monkeypatch.setattr(time_left, "head_seconds", lambda _: 28 / 256)
    with forecast():
        total_s = foretell(quantizer, evaluations=70, finalists=3, measured=10)
        expected = dict(bars._FORECAST.get().expected)  # type: ignore[union-attr]
        units = dict(bars._FORECAST.get().units)  # type: ignore[union-attr]
        assert sum(expected.values()) == pytest.approx(total_s)
        assert expected[COALITIONS] == pytest.approx(60 * (100 * SHARED + 28))
        assert expected[WRITTEN] == pytest.approx(3 * 128 * (1 + (1 if own else JUDGES)))
        assert expected[TUNING] == pytest.approx(2 * 50 * BACKWARD * 128 * BATCH_TOKENS["cpu"] / 256)
        pairs = sum(item.shape[0] * item.shape[1] ** 2 for item in linears.values())
        columns_s = COLUMNS * pairs * 100 / (2 * weights * 256)
        assert expected[IN_SEQUENCE] == pytest.approx(times * (PASSES * 100 * (1 if own else 2) + columns_s))
        assert (units[TUNING], units[IN_SEQUENCE]) == (100, round(times * len(linears)))
        said = capsys.readouterr().err
        assert said.startswith("note: about ")
        assert said.count("\n") == 1
        assert ("--rounding-windows or --fast" in said) == (rounding == "gptq")
        assert "bfloat16" not in said
        speeds[torch.bfloat16] = 2.24 * speed
        foretell(quantizer, evaluations=70, finalists=3, measured=10)
        assert capsys.readouterr().err.endswith("; products are 2.2 times as fast with --dtype bfloat16 here\n")
        monkeypatch.setattr(time_left, "LONG_S", total_s + 1)
        foretell(quantizer, evaluations=70, finalists=3, measured=10)
        assert not capsys.readouterr().err
        with progress(IN_SEQUENCE, len(linears), "linears") as advance:
            clock[0] += 60
            advance()
        assert re.search(r"about \d+h\d\dm in all\n$", capsys.readouterr().err)


def test_experts_count_by_how_many_a_token_asks(checkpoint: Callable[..., Path], text_file: Path) -> None:
    quantizer = opened(checkpoint, text_file, labels="predictions")
    staged, before = quantizer.staged, weights_of_a_token(quantizer)[0]
    for layer in range(2):
        for expert in range(8):
            staged.originals[f"model.layers.{layer}.mlp.experts.{expert}.up_proj"] = torch.ones(4, 8)
    heads = 2 * staged.model.lm_head.weight.numel()
    assert weights_of_a_token(quantizer) == (before + 2 * 8 * 32, heads)  # nobody says how many
    staged.model.config.num_experts_per_tok = 2
    assert weights_of_a_token(quantizer) == (before + 2 * 2 * 32, heads)


def test_a_cpus_speed_is_that_of_its_best_product_and_its_head_is_timed_in_the_dtype_of_the_run(
    checkpoint: Callable[..., Path], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = opened(checkpoint, text_file, labels="predictions")
    largest = max(item.numel() for item in quantizer.staged.originals.values())
    at = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(time_left.time, "perf_counter", lambda: next(at))
    assert product_speed(quantizer) == 2 * ROWS * largest / 2.0
    at = iter([0.0, 6.4, 10.0, 16.4, 20.0, 29.0])
    seen: list[Any] = []
    monkeypatch.setattr(quantizer.staged, "device_nll", lambda *given: seen.append(given))
    assert head_seconds(quantizer) == pytest.approx(0.1)
    hidden, ids, teacher = seen[-1]
    assert hidden.shape == (1, 65, quantizer.staged.model.config.hidden_size)
    assert hidden.dtype == quantizer.staged.compute_dtype
    assert teacher is hidden
    assert ids.shape == (1, 65)


def test_a_long_run_is_told_of_by_the_command(
    checkpoint: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(time_left, "LONG_S", 0)
    ask = QuantizeRequest(avg_bits=3, evaluations=20, device="cpu", fast=True)
    recipe = Recipe(calibration=text_file, windows=2, window_tokens=24, group_size=32)
    quantizing.quantize(str(checkpoint("llama", blocks=2)), tmp_path / "out", ask, recipe)
    assert "in all on this CPU" in capsys.readouterr().err


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
