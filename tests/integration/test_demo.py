"""The demonstration at a tiny setting, and the recorded profile that it learns from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from apportion.core.artifact import claim_folder, read_manifest
from apportion.core.errors import ArtifactExistsError, InputError
from apportion.demo import model_path, prompts_path, world, write_corpus
from apportion.demo.recorded import RECORDED, fresh_questions, profile_path, recorded
from apportion.demo.show import Show, show, text_of
from apportion.demo.show_bits import BitsPlan
from apportion.demo.show_real import real_text
from apportion.demo.show_route import SHOWN_WEIGHTS, RoutePlan
from apportion.models.identity import model_identity
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.index.build import build_index
from apportion.route.index.corpus import read_corpus

TINY = Show(
    BitsPlan(
        permutations=2, evaluations=14, windows=2, window_tokens=64, text_windows=4, widths=(4, 2), players="blocks"
    ),
    RoutePlan(questions=3),
)


def test_recorded_profile_belongs_to_what_ships(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    index = build_index(read_corpus(tmp_path / "corpus.jsonl"), tmp_path / "index")
    for split in RECORDED:
        source = recorded(split).source
        assert source.model == model_identity(model_path())
        assert source.prompts == load_prompts(prompts_path()).digest
        assert source.corpus == index.corpus_digest


def test_recorded_profile_is_small_and_whole() -> None:
    assert profile_path().stat().st_size < 2_000_000
    for split in RECORDED:
        profile = recorded(split)
        asked = {question.id: question.question for question in world().questions(split)}
        assert profile.n >= 200
        assert profile.strategies == STRATEGIES
        assert profile.complete.all()
        assert profile.has_latency
        assert profile.has_cost("direct")
        assert all(asked[name] == text for name, text in zip(profile.ids, profile.question, strict=True))


def test_live_questions_are_not_recorded_ones() -> None:
    fresh = fresh_questions(60)
    assert len(fresh) == 60
    assert not {question.id for question in fresh} & {*recorded("test").ids, *recorded("train").ids}
    assert len({question.dataset for question in fresh}) == 6


def test_a_split_that_was_not_recorded_is_refused() -> None:
    with pytest.raises(InputError, match=r"validation.*not recorded"):
        recorded("validation")


def test_both_halves_are_shown(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shown = show(out, TINY)
    plans = {row.plan: row for row in shown.bits.rows}
    assert list(plans) == ["full precision", "uniform 4", "uniform 2", "coopq 3", "auto 3"]
    assert plans["full precision"].kl < plans["uniform 2"].kl
    assert plans["uniform 2"].bytes < plans["auto 3"].bytes <= plans["uniform 4"].bytes < plans["full precision"].bytes
    assert plans["auto 3"].avg_bits <= 3.0
    assert read_manifest(Path(shown.bits.files["checkpoint"]))
    assert {row.strategy for row in shown.route.rows} == {*STRATEGIES, "router", "oracle"}
    assert len(shown.route.rows) == 6 * len(SHOWN_WEIGHTS)
    assert sum(shown.route.live.routes.values()) == shown.route.live.questions == 3
    assert shown.route.live.router.tokens > 0
    assert shown.route.live.always.latency_ms > 0
    text = text_of(shown)
    assert real_text(shown.real) in text
    assert "qwen25-coder-15b" in text
    for path in (*shown.bits.files.values(), *shown.route.files.values()):
        assert Path(path).exists()
        assert path in text
    assert json.loads((out / "demo.json").read_text())["seconds"] == shown.seconds
    with pytest.raises(ArtifactExistsError):
        show(out, TINY)


def test_the_command_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    claim_folder(tmp_path, resume=False)
    (tmp_path / "kept").write_text("mine")
    words = [sys.executable, "-m", "apportion", "demo", "--out", str(tmp_path)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error:")
    assert "Traceback" not in run.stderr
    assert (tmp_path / "kept").read_text() == "mine"
