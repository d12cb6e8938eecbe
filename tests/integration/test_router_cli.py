"""train-router and evaluate-router over files: a profile in, a router and an evaluation out."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from apportion.cli import main
from apportion.core.artifact import read_manifest
from apportion.core.lock import sole_writer
from apportion.route.ask.source import ProfileSource
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.file import write_profile
from apportion.route.profile.profile import Outcome, Profile
from apportion.route.router import load_router, save_router
from tests.synthetic_profiles import look_profile, needs_profile
from tests.trained_routers import uninformed


def save(profile: Profile, path: Path, model: str = "tiny") -> Path:
    """The profile as `apportion profile` would have written it."""
    outcomes = [
        Outcome(
            dataset=profile.dataset[i],
            question_id=profile.ids[i],
            question=profile.question[i],
            answers=("yes",),
            strategy=strategy,
            f1=float(profile.quality[i, s]),
            em=float(profile.em[i, s]),
            prompt_tokens=int(profile.tokens[i, s]),
            completion_tokens=int(profile.tokens[i, s]) // 10,
            latency_ms=float(profile.latency_ms[i, s]),
            features=dict(zip(profile.feature_names, profile.features[i].tolist(), strict=True)),
        )
        for i in range(profile.n)
        for s, strategy in enumerate(STRATEGIES)
    ]
    write_profile(path, outcomes, ProfileSource(model, "corpus", "prompts", 5, "now"))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["apportion", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_train_then_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = save(needs_profile(200, seed=1), tmp_path / "train.parquet")
    test = save(needs_profile(100, seed=2), tmp_path / "test.parquet")
    router, out = tmp_path / "router", tmp_path / "evaluation"
    assert run(monkeypatch, "train-router", str(seen), "--out", str(router), "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert [tier["name"] for tier in record["tiers"]][:3] == ["full", "lean", "asking"]
    assert read_manifest(router)["source"] == {
        "model": "tiny",
        "corpus": "corpus",
        "prompts": "prompts",
        "k": 5,
    }
    words = ["evaluate-router", str(test), "--router", str(router), "--out", str(out), "--json"]
    assert run(monkeypatch, *words) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((out / "evaluation.json").read_text())
    assert printed["weights"] == saved["weights"]
    assert saved["weights"][3]["router"]["utility"] > saved["weights"][3]["best_static"]["utility"]
    assert (out / "report.md").read_text().splitlines()[0] == saved["summary"]["first_line"]
    assert (out / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    read_manifest(out)


def test_a_router_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save(needs_profile(60, seed=2), tmp_path / "test.parquet", model="two")
    save_router(tmp_path / "router", replace(uninformed().router, source={"model": "one"}), {})
    words = [
        "evaluate-router",
        str(other),
        "--router",
        str(tmp_path / "router"),
        "--out",
        str(tmp_path / "e"),
    ]
    assert run(monkeypatch, *words) == 1
    said = capsys.readouterr().err
    assert "trained on another model" in said
    assert "remedy" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train-router", "none.parquet", "--out", "x"], "no such file"),
        (["train-router", "none.parquet", "--out", "x", "--index", "nowhere"], "--index nowhere"),
        (["evaluate-router", "none.parquet", "--out", "."], "names the current folder"),
        (["evaluate-router", "none.parquet", "--out", "taken"], "exists and is not empty"),
        (["train-router", "none.parquet", "--out", "taken"], "exists and is not an empty folder"),
        (["train-router", "none.parquet", "--out", "x", "--price", ".15"], "--price .15"),
    ],
)
def test_bad_input_is_one_line_and_a_remedy(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").write_text("here")
    assert run(monkeypatch, *words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_two_decisions_at_a_price_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, out = save(look_profile(200, seed=1), tmp_path / "train.parquet"), tmp_path / "router"
    words = ["train-router", str(seen), "--out", str(out), "--stages", "2", "--price", "in=1,out=3"]
    assert run(monkeypatch, *words) == 0
    assert "second decision: " in capsys.readouterr().out
    manifest, router = read_manifest(out), load_router(out)
    assert manifest["scale"]["price"] == {"input": 1.0, "cached": 1.0, "output": 3.0}
    assert router.second is not None
    assert router.decide({}, 0.2).look
    words = ["evaluate-router", str(seen), "--out", str(tmp_path / "e"), "--router", str(out), "--price", "in=2,out=3"]
    assert run(monkeypatch, *words) == 1
    assert "trained with its own price" in capsys.readouterr().err


def test_an_evaluation_goes_on_only_with_what_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test, out = save(needs_profile(60, seed=2), tmp_path / "test.parquet"), tmp_path / "e"
    save_router(
        tmp_path / "router",
        replace(uninformed().router, source={"model": "tiny", "corpus": "corpus", "prompts": "prompts", "k": 5}),
        {},
    )
    words = ["evaluate-router", str(test), "--router", str(tmp_path / "router"), "--out", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr("apportion.route.evaluation.write_evaluation", lambda folder, found: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(patched, *words)
    assert run(monkeypatch, *words) == 1
    assert "--resume" in capsys.readouterr().err
    assert run(monkeypatch, *words, "--resume", "--seed", "3") == 1
    assert "another plan" in capsys.readouterr().err
    assert run(monkeypatch, *words, "--resume") == 0
    assert "signals alone" in capsys.readouterr().out


def test_a_price_that_is_none_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, out = save(needs_profile(60, seed=1), tmp_path / "p.parquet"), tmp_path / "e"
    assert run(monkeypatch, "evaluate-router", str(seen), "--out", str(out), "--price", "rubbish") == 1
    assert "--price rubbish" in capsys.readouterr().err
    assert not out.exists()


def test_one_output_has_one_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, out = save(needs_profile(40, seed=1), tmp_path / "p.parquet"), tmp_path / "router"
    out.mkdir()
    with sole_writer(out):
        assert run(monkeypatch, "train-router", str(seen), "--out", str(out)) == 1
    assert "being written by another process" in capsys.readouterr().err


def test_deciding_needs_no_torch() -> None:
    code = "import sys, apportion.route.router.file, apportion.route.router.router; sys.exit('torch' in sys.modules)"
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source}, check=False)
    assert done.returncode == 0
