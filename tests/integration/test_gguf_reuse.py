"""`apportion quantize --format gguf --reuse`: what is said of text, and of evidence that is another run's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apportion.bits.gguf.quantize import quantize_gguf
from apportion.bits.gguf.recipe import FileRequest
from apportion.core.errors import ArtifactError, InputError
from apportion.core.log import read_log
from tests.tiny_gguf_models import make_kind
from tests.tiny_models import make_text

SMALL = {
    "windows": 2, "window_tokens": 32, "importance_windows": 4, "sequences": 4, "sequence_tokens": 32,
    "evaluations": 4, "judged_windows": 2, "device": "cpu",
}  # fmt: skip


def test_a_reused_run_of_other_windows_is_said_and_one_that_measured_nothing_refused(tmp_path: Path) -> None:
    model, text = str(make_kind(tmp_path / "model", "llama", intermediate_size=256)), tmp_path / "text.txt"
    text.write_text(make_text(2500))
    first = FileRequest(bits_per_weight=9, calibration=text, **SMALL)
    measured = quantize_gguf(model, tmp_path / "first.gguf", first)
    second = replace(first, bits_per_weight=8, reuse=tmp_path / "first.gguf.apportion")
    same, other = (
        quantize_gguf(model, tmp_path / f"second-{seed}.gguf", replace(second, seed=seed))["judged_on"]
        for seed in (0, 1)
    )
    assert same == measured["judged_on"] == "2 windows of the calibration text that nothing was chosen on"
    assert other.endswith("of which the run that is reused may have chosen on some")
    again = replace(second, reuse=tmp_path / "second-0.gguf.apportion")
    with pytest.raises(ArtifactError, match=r"measured nothing, it reused first\.gguf\.apportion itself"):
        quantize_gguf(model, tmp_path / "third.gguf", again)
    assert not (tmp_path / "third.gguf").exists()


def test_the_same_budget_again_is_never_behind_what_was_measured(tmp_path: Path) -> None:
    model, text = str(make_kind(tmp_path / "model", "qwen3", intermediate_size=256)), tmp_path / "text.txt"
    text.write_text(make_text(2500))
    for seed in range(3):
        first = FileRequest(bits_per_weight=8, calibration=text, **{**SMALL, "evaluations": 16, "seed": seed})
        quantize_gguf(model, tmp_path / f"{seed}.gguf", first)
        evidence = tmp_path / f"{seed}.gguf.apportion"
        least = min(float(np.mean(record["kl"])) for record in read_log(evidence / "plans.log")[1])
        again = quantize_gguf(model, tmp_path / f"{seed}-again.gguf", replace(first, reuse=evidence))
        assert min(again["kl_measured"] or 1, again["kl_predicted"]) <= least
        assert again["kl_measured"] is None or again["kl_measured"] == least


def test_a_number_of_plans_is_refused_by_its_option() -> None:
    with pytest.raises(InputError, match="--plans 0: expected at least 1"):
        FileRequest(max_bytes=1, evaluations=0).check()
