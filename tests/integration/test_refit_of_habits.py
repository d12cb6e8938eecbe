"""Feedback as people give it: votes on bad answers alone, everything 0, the same question again, no tokens known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from apportion.cli import serve
from apportion.core.bootstrap import Interval
from apportion.core.errors import InputError
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.profile import Profile
from apportion.route.router.file import save_router
from apportion.serve import decision_log, relearning
from apportion.serve.relearning import Relearned, as_profile, bias_of, relearn, split
from tests.integration.test_refit import _records as records_of
from tests.routings import static_router
from tests.synthetic_profiles import needs_profile
from tests.trained_routers import QUICK

Records = list[dict[str, Any]]
LEARN = relearning.train_router


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """What the router in use learned from: RAG+CoT is right four times in five, and no feature tells when."""
    profile = needs_profile(300, seed=1, signal=0.0, noise=0.2)
    monkeypatch.setattr(relearning, "read_profile", lambda path: profile)
    monkeypatch.setattr(relearning, "train_router", lambda profile, **how: LEARN(profile, QUICK, **how))
    save_router(tmp_path / "router", static_router("rag+cot"), {})
    return profile


def scored(keep: str, route: str = "rag+cot", n: int = 600) -> Records:
    """Decisions of one route with the truth as score: all of them, or the bad and every twentieth of the good."""
    asked = needs_profile(n, seed=2, signal=0.0, noise=0.2)
    right = asked.quality[:, STRATEGIES.index(route)]
    rows = np.arange(n) if keep == "all" else np.flatnonzero((right == 0) | (np.arange(n) % 20 == 0))
    return records_of(asked.select(rows), [route] * len(rows), right[rows].tolist())


def refitted(records: Records, folder: Path) -> Relearned:
    return relearn(records, folder, folder / "router")


def test_votes_on_bad_answers_are_no_gain_of_other_routes(base: Profile, tmp_path: Path) -> None:
    found = refitted(scored("bad", n=1500), tmp_path)
    assert found.bias < -0.3
    assert found.refused == ""
    assert not found.better
    assert found.gain.mean < 0.02
    honest = refitted(scored("all"), tmp_path)
    assert abs(honest.bias) < 0.05
    assert not honest.better


def test_scores_that_are_all_alike_replace_nothing(base: Profile, tmp_path: Path) -> None:
    records = [{**one, "score": 0.0} for one in scored("all", n=150)]
    found = refitted(records, tmp_path)
    assert found.refused == "every score is 0, which tells no answer from another"
    gained = replace(found, gain=Interval(0.2, 0.1, 0.3))
    assert not gained.better, "refused whatever the gain"
    assert replace(gained, refused="").better


def test_estimates_move_by_the_bias_and_are_not_bounded(base: Profile) -> None:
    records = scored("bad", n=60)
    bias = bias_of(records, base)
    plain, moved = as_profile(records, base), as_profile(records, base, bias)
    others = [column for column in range(4) if STRATEGIES[column] != "rag+cot"]
    np.testing.assert_allclose(moved.quality[:, others], plain.quality[:, others] + bias)
    np.testing.assert_array_equal(moved.quality[:, 3], [one["score"] for one in records])
    assert moved.quality.min() < 0


def test_a_question_that_was_asked_again_is_on_one_side(base: Profile, tmp_path: Path) -> None:
    records = scored("all", n=120)
    for row, one in enumerate(records):
        one["question"] = f"Question {row % 60}?" if row < 60 else f" QUESTION  {row % 60}? "
    seen, judged = split(records)
    texts = [{one["question"].lower().split()[1] for one in part} for part in (seen, judged)]
    assert len(texts[0]) + len(texts[1]) == 60
    assert len(texts[1]) > 5
    found = refitted(records, tmp_path)
    assert (found.unrecognised, found.learned_from + found.judged_on) == (0, 120)
    for one in records:
        one["question"] = "Always the same?"
    with pytest.raises(InputError, match="120 decisions have a score and features, of 1 different questions"):
        refitted(records, tmp_path)


def test_a_question_that_was_not_kept_is_told_apart_by_id_and_counted(base: Profile, tmp_path: Path) -> None:
    assert refitted(scored("all", n=120), tmp_path).unrecognised == 120


def test_tokens_that_were_not_told_are_the_neighbours(base: Profile, tmp_path: Path) -> None:
    told, untold = scored("all", n=120), scored("all", n=120)
    for one in untold[:60]:
        one |= {"measured": False, "completion_tokens": 7, "prompt_tokens": 0}  # a stream, counted by events
    for one in untold[60:]:
        one |= {"completion_tokens": 0, "prompt_tokens": 0}  # noted as if they had been told
    base = replace(base, completion_tokens=base.tokens / 10)
    near = base.tokens[relearning.neighbours(told, base)].mean(axis=1)
    rows = as_profile(untold, base)
    np.testing.assert_allclose(rows.tokens, near)
    assert rows.completion_tokens is not None
    np.testing.assert_allclose(rows.completion_tokens, near / 10)
    assert as_profile(told, base).tokens[0, 3] == told[0]["prompt_tokens"] != near[0, 3]
    assert refitted(untold, tmp_path).unmeasured == 120
    assert refitted(told, tmp_path).unmeasured == 0


def test_the_command_says_all_of_it(base: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{**one, "score": 0.0, "measured": False} for one in scored("all", n=120)]
    monkeypatch.setattr(decision_log, "read_decisions", lambda path: records)
    words = ["refit", "--decisions", "d", "--profile", "p", "--router", str(tmp_path / "router")]
    result = CliRunner().invoke(serve.app, words)
    assert result.exit_code == 0, result.output
    assert "every score is 0" in result.output
    assert "from what the profile expects" in result.output
    assert "120 questions were not kept" in result.output
    assert "120 decisions came without tokens" in result.output
    assert "the router in use stays" in result.output
