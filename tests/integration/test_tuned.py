"""Tuned plans through the whole line: what was tuned is what is saved, and loading it gives what was measured."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apportion.bits.apply import apply
from apportion.bits.game.samples import WINDOWS
from apportion.bits.plan import plan_from
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.recipe import Recipe
from apportion.bits.report import tuning_note
from apportion.bits.rounding import distil, full_precision_hidden
from apportion.bits.rounding.tuning import ANEW
from apportion.cli.bits import quantize_text
from apportion.core.artifact import read_json
from apportion.core.device import place
from apportion.core.errors import ArtifactMismatchError, InputError
from apportion.formats import grid_width
from apportion.models.load import load_staged
from apportion.models.text import load_calibration

Make = Callable[..., Path]
CPU = place("cpu", "float32")


def small(text: Path, **changes: object) -> Recipe:
    given = {
        "windows": 2,
        "window_tokens": 24,
        "group_size": 32,
        "rounding": "nearest",
        "players": "linears",
        "widths": (2, 3, 4),
    }
    return Recipe(calibration=text, **{**given, "permutations": 0, "rounding_windows": 4, "tune": 8, **changes})


def numbers(path: Path, count: int) -> Path:
    """A text whose windows all differ."""
    path.write_text(" ".join(map(str, np.random.default_rng(0).integers(10**6, size=count))))
    return path


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_what_is_loaded_predicts_to_the_bit_what_was_measured_in_bfloat16(
    kind: str, checkpoint: Make, tmp_path: Path
) -> None:
    ask = QuantizeRequest(avg_bits=2.5, evaluations=20, finalists=1, device="cpu", dtype="bfloat16")
    text = numbers(tmp_path / "text.txt", 600)
    result = quantize(str(checkpoint(kind, blocks=2)), tmp_path / "q", ask, small(text, codes=True))
    assert result["tuned"]["learned"] == "codes and scales"
    assert result["reload_difference"] == 0
    assert result["loads_in"] == {"transformers": ""}


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_tuned_checkpoint_loads_to_the_loss_that_was_measured(
    rounding: str, checkpoint: Make, tmp_path: Path
) -> None:
    source = str(checkpoint("qwen3", blocks=2))
    ask = QuantizeRequest(avg_bits=2.5, evaluations=20, finalists=1, device="cpu", dtype="float32")
    text = numbers(tmp_path / "text.txt", 600)
    result = quantize(source, tmp_path / "q", ask, small(text, rounding=rounding))
    tuned = result["tuned"]
    assert tuned["asked"] == 8
    assert tuned["after"] <= tuned["before"]
    assert "unseen by search, tuning" in result["judged_on"]
    if rounding == "nearest":
        assert tuned["steps"] > 0
    assert result["nll_judged"] != result["nll_plan"]
    gained = f"best after {tuned['steps']} of 8 steps" if tuned["steps"] else "without gain"
    assert gained in (tmp_path / "q" / "report" / "report.md").read_text()
    assert gained in quantize_text(result)
    assert f"At the looks: {tuned['looks'][0][1]:.4f} after 1, " in tuning_note(tuned)
    assert "at slower rates" not in tuning_note(tuned)
    assert "No better than before at step 2, 4: " in tuning_note({**tuned, "slowed": [2, 4]})
    assert "asked anew" in tuning_note({**tuned, "execution": tuned["execution"] + ANEW})
    staged = load_staged(str(tmp_path / "q"), CPU)
    windows = load_calibration(tmp_path / "q" / "samples" / WINDOWS).windows
    teacher = full_precision_hidden(load_staged(source, CPU), windows)
    assert float(staged.window_nll(windows, teacher=teacher).mean()) == pytest.approx(result["nll_plan"], abs=1e-5)


def test_tuning_leaves_a_quarter_of_the_text_for_judging_finalists(checkpoint: Make, tmp_path: Path) -> None:
    varied = numbers(tmp_path / "varied.txt", 600)
    table = open_model(str(checkpoint(blocks=2)), small(varied))
    taught = table.tuning_text
    left = table.mixture.unseen(taught, 10**6, seed=0)
    assert len(left) > 0
    assert len(left) >= len(taught) / 4


def test_apply_tunes_as_quantize_does_and_says_so(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    source = str(checkpoint(blocks=2))
    ask = QuantizeRequest(avg_bits=2.5, evaluations=20, finalists=1, device="cpu", dtype="float32")
    made = quantize(source, tmp_path / "q", ask, small(text_file))
    plan = plan_from(read_json(tmp_path / "q" / "plan.json"))
    again = apply(source, plan, tmp_path / "a", recipe=small(text_file), device="cpu")
    assert again["tuned"] == made["tuned"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "q" / "model.safetensors").read_bytes()


def test_tuning_that_ended_early_is_told_with_the_plan(
    checkpoint: Make, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = distil.predictions_gradient
    monkeypatch.setattr(distil, "predictions_gradient", lambda *given: gradient(*given) * math.nan)
    quantizer = open_model(str(checkpoint(blocks=2)), small(text_file), QuantizeRequest(device="cpu", dtype="float32"))
    told = quantizer.write(dict.fromkeys(quantizer.staged.originals, grid_width(2, 32))).tuned
    assert told is not None
    assert told["diverged"] in range(1, told["asked"] + 1)
    assert f"ended at step {told['diverged']}, where the loss was not finite" in tuning_note(told)
    assert "ended" not in tuning_note({**told, "diverged": None})


def test_tuning_is_refused_for_formats_without_plain_scales(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest or gptq"):
        quantize(
            str(checkpoint(blocks=2)), tmp_path / "q", QuantizeRequest(avg_bits=3), small(text_file, rounding="hqq")
        )
    assert not (tmp_path / "q").exists()


def test_a_text_too_short_for_fresh_windows_says_whom_they_are_not_fresh_to(checkpoint: Make, tmp_path: Path) -> None:
    short = numbers(tmp_path / "short.txt", 60)
    source, ask = str(checkpoint(blocks=2)), QuantizeRequest(avg_bits=2.5, evaluations=20, finalists=1, device="cpu")
    result = quantize(source, tmp_path / "q", ask, small(short, rounding="gptq", rounding_windows=128))
    assert "unseen by search, tuning (not by rounding: the text is too short)" in result["judged_on"]


def test_tuning_on_text_that_the_model_samples_itself(checkpoint: Make, tmp_path: Path) -> None:
    ask = QuantizeRequest(avg_bits=2.5, evaluations=20, finalists=1, device="cpu", dtype="bfloat16")
    own = replace(small(tmp_path), calibration=None, windows=3, tune=2)
    result = quantize(str(checkpoint(blocks=2)), tmp_path / "q", ask, own)
    assert result["tuned"]["asked"] == 2
    assert result["judged_on"] == "3 windows sampled anew"
    with pytest.raises(InputError, match="--windows 1"):
        quantize(str(checkpoint(blocks=2)), tmp_path / "r", ask, replace(own, windows=1))


def test_a_text_of_one_window_is_refused_before_the_work(checkpoint: Make, tmp_path: Path) -> None:
    short = numbers(tmp_path / "short.txt", 8)
    with pytest.raises(InputError, match="fewer than two windows"):
        quantize(str(checkpoint(blocks=2)), tmp_path / "q", QuantizeRequest(avg_bits=3), small(short, windows=1))
    assert not (tmp_path / "q").exists()


def test_another_number_of_steps_is_another_run(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    source, ask = str(checkpoint(blocks=2)), QuantizeRequest(avg_bits=3, evaluations=20, finalists=1, device="cpu")
    quantize(source, tmp_path / "q", ask, small(text_file, tune=1))
    with pytest.raises(ArtifactMismatchError, match="tune"):
        quantize(source, tmp_path / "q", ask, small(text_file, tune=2), resume=True)
