"""Feedback -> a better router -> taken over by a running server without a restart; a worse one is not taken."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from apportion.core.errors import ArtifactError, InputError
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.profile import Profile
from apportion.route.router.file import load_router, save_router
from apportion.route.router.price import Price
from apportion.route.router.router import Router
from apportion.route.router.utility import scale_of
from apportion.serve import following, relearning
from apportion.serve.decision_log import read_decisions
from apportion.serve.relearning import as_profile, joined, relearn, utilities
from tests.integration.serving import ASKED, serving
from tests.integration.upstream_stub import Stub
from tests.routings import knowing_router, routing, static_router
from tests.synthetic_profiles import needs_profile
from tests.trained_routers import QUICK


def _records(profile: Profile, routes: list[str], scores: list[float]) -> list[dict[str, Any]]:
    found = []
    for row, (route, score) in enumerate(zip(routes, scores, strict=True)):
        features = dict(zip(profile.feature_names, profile.features[row].tolist(), strict=True))
        tokens = int(profile.tokens[row, STRATEGIES.index(route)])
        found.append(
            {"id": f"dec-{row}", "route": route, "score": score, "status": "ok", "shadow": "", "features": features,
             "question": None, "prompt_tokens": tokens, "completion_tokens": 0, "wasted_tokens": 0,
             "draft_reused": False, "measured": True, "token_weight": 0.05, "latency_weight": 0.0}
        )  # fmt: skip
    return found


def test_a_logged_decision_keeps_its_score_and_borrows_the_rest() -> None:
    base = needs_profile(200, seed=1)
    rows = as_profile(_records(base.select(np.arange(2)), ["rag", "cot"], [0.25, 0.75]), base)
    assert rows.quality[0, 1] == 0.25
    assert rows.quality[1, 2] == 0.75
    assert rows.tokens[0, 1] == base.tokens[0, 1]
    near = relearning.neighbours(_records(base.select(np.arange(1)), ["rag"], [1.0]), base)
    assert near[0, 0] == 0, "a question is its own nearest neighbour"
    assert rows.quality[0, 3] == pytest.approx(base.quality[near[0], 3].mean())


def test_feedback_that_shows_the_way_replaces_a_router_that_does_not_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = needs_profile(400, seed=1)
    asked = needs_profile(240, seed=2)
    monkeypatch.setattr(relearning, "read_profile", lambda path: base)
    monkeypatch.setattr(relearning, "train_router", lambda profile, **how: real(profile, QUICK, **how))
    save_router(tmp_path / "router", static_router("direct"), {})
    routes = [STRATEGIES[row % 4] for row in range(asked.n)]
    scores = [float(asked.quality[row, row % 4]) for row in range(asked.n)]
    found = relearn(_records(asked, routes, scores), tmp_path, tmp_path / "router")
    assert found.better
    assert found.learned_from + found.judged_on == 240
    relearning.save(tmp_path / "router-1", found)
    again = relearn(_records(asked, routes, scores), tmp_path, tmp_path / "router-1")
    assert not again.better, "what is as good as the one in use replaces nothing"
    assert again.agreeing == 1.0


real = relearning.train_router
PRICE = Price(input=1.0, cached=0.5, output=4.0)


def _apart(profile: Profile) -> Profile:
    """The same with a tenth of all tokens generated and half of them cached."""
    return replace(profile, completion_tokens=profile.tokens / 10, cached_tokens=profile.tokens / 2)


def _priced(router: Router, base: Profile) -> Router:
    return replace(router, scale=scale_of(base, PRICE))


def test_routers_of_equal_choices_and_other_scales_gain_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, asked = needs_profile(200, seed=1), needs_profile(240, seed=2)
    save_router(tmp_path / "router", static_router("rag+cot"), {})
    used = load_router(tmp_path / "router")
    larger = replace(used, scale=replace(used.scale, tokens=3 * used.scale.tokens))
    monkeypatch.setattr(relearning, "read_profile", lambda path: base)
    monkeypatch.setattr(relearning, "train_router", lambda profile, **how: SimpleNamespace(router=larger))
    monkeypatch.setattr(relearning, "training_record", lambda trained: {})
    records = _records(asked, ["rag+cot"] * asked.n, [0.5] * asked.n)
    found = relearn(records, tmp_path / "profile.parquet", tmp_path / "router")
    assert (found.gain.mean, found.agreeing, found.better) == (0.0, 1.0, False)


def test_a_logged_answer_is_charged_as_its_tokens_were(tmp_path: Path) -> None:
    base = _apart(needs_profile(200, seed=1))
    (record,) = _records(base.select(np.arange(1)), ["cot"], [1.0])
    record |= {"prompt_tokens": 90, "completion_tokens": 60, "wasted_tokens": 50}
    rows = as_profile([record], base)
    assert rows.completion_tokens is not None
    assert rows.cached_tokens is not None
    assert (rows.tokens[0, 2], rows.completion_tokens[0, 2]) == (100, 40)  # two thirds were kept, of either kind
    near = relearning.neighbours([record], base)[0]
    assert rows.completion_tokens[0, 3] == pytest.approx(base.tokens[near, 3].mean() / 10)
    cached = min(base.tokens[near, 2].mean() / 2, 60)  # no more than the answer's prompt
    assert rows.cached_tokens[0, 2] == pytest.approx(cached)
    router = _priced(static_router("cot"), base)
    (found,), _ = utilities(router, [record], base, router.scale, timed=router.has_latency)
    bill = (60 - cached) * 1.0 + cached * 0.5 + 40 * 4.0
    assert found == pytest.approx(1.0 - 0.05 * bill / router.scale.tokens)
    both = joined(base, rows)
    assert both.completion_tokens is not None
    assert both.completion_tokens[-1, 2] == 40
    assert joined(needs_profile(200, seed=1), rows).completion_tokens is None


def test_a_router_with_prices_learns_from_feedback_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, asked = _apart(needs_profile(400, seed=1)), needs_profile(240, seed=2)
    monkeypatch.setattr(relearning, "read_profile", lambda path: base)
    monkeypatch.setattr(relearning, "train_router", lambda profile, **how: real(profile, QUICK, **how))
    save_router(tmp_path / "router", _priced(static_router("direct"), base), {})
    scores = [float(asked.quality[row, row % 4]) for row in range(asked.n)]
    found = relearn(
        _records(asked, [STRATEGIES[row % 4] for row in range(asked.n)], scores), tmp_path, tmp_path / "router"
    )
    assert found.better
    relearning.save(tmp_path / "router-1", found)
    assert load_router(tmp_path / "router-1").scale.price == PRICE


def test_a_router_with_prices_needs_a_profile_that_tells_tokens_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = needs_profile(60, seed=1)
    monkeypatch.setattr(relearning, "read_profile", lambda path: base)
    save_router(tmp_path / "router", _priced(static_router("direct"), _apart(base)), {})
    with pytest.raises(InputError, match="does not hold prompt and completion tokens apart"):
        relearn([], tmp_path, tmp_path / "router")


def test_too_little_feedback_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = needs_profile(60, seed=1)
    monkeypatch.setattr(relearning, "read_profile", lambda path: base)
    save_router(tmp_path / "router", static_router("direct"), {})
    with pytest.raises(InputError, match="10 decisions have a score and features, expected at least 50"):
        relearn(_records(base.select(np.arange(10)), ["rag"] * 10, [1.0] * 10), tmp_path, tmp_path / "router")


def test_a_running_server_takes_over_what_the_path_names(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[Any] = []
    monkeypatch.setattr(following, "EVERY_S", 0.05)
    monkeypatch.setattr(following.log, "error", lambda *said, **fields: refused.append(said))
    known = routing(tmp_path, knowing_router())
    save_router(tmp_path / "router", known.router, {})
    with serving(stub, known, router=tmp_path / "router") as client:
        assert client.chat.completions.create(**ASKED).model_dump()["apportion"]["route"] == "direct"
        other = replace(static_router("cot"), source={"model": "another"})
        save_router(following.successor(tmp_path / "router"), other, {})
        following.exchange(tmp_path / "router", tmp_path / "router-1")
        deadline = time.monotonic() + 60
        while not refused:
            assert time.monotonic() < deadline, "the server never looked"
            time.sleep(0.05)
        assert client.chat.completions.create(**ASKED).model_dump()["apportion"]["tier"] == "full", "refused, kept"
        save_router(tmp_path / "router-3", static_router("cot"), {})
        before = following.exchange(tmp_path / "router", tmp_path / "router-3")
        deadline = time.monotonic() + 60
        while (route := client.chat.completions.create(**ASKED).model_dump()["apportion"]["route"]) != "cot":
            assert time.monotonic() < deadline, route
            time.sleep(0.05)
    assert before == tmp_path / "router-1"
    assert (tmp_path / "router-2" / "manifest.json").exists(), "the first one is kept"


def test_decisions_that_are_not_there_are_said_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        read_decisions(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
    (tmp_path / "text.sqlite").write_text("no database " * 100)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_decisions(tmp_path / "text.sqlite")
