"""Laws of decisions: one by one is in bulk, saved is live, numpy is torch, weights are checked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core.errors import ArtifactCorruptError, ArtifactError, ArtifactMismatchError, InputError
from apportion.route.ask.features import is_draft
from apportion.route.ask.strategy import STRATEGIES, strategy_of
from apportion.route.router.file import load_router, save_router
from apportion.route.router.fit import _forward
from apportion.route.router.policy import Policy, encode_weights, joint
from apportion.route.router.report import training_record
from apportion.route.router.router import STATIC, Router
from apportion.route.router.utility import Weights
from tests.synthetic_profiles import NAMES, needs_profile
from tests.trained_routers import informed, preferring

weight = st.one_of(st.just(0.0), st.floats(0.001, 20))
feature = st.one_of(st.none(), st.floats(-50, 50), st.just(float("nan")))
rows = st.fixed_dictionaries(dict.fromkeys(NAMES, feature))


@given(rows, weight, weight)
@settings(max_examples=60, deadline=None)
def test_one_by_one_equals_in_bulk(features: dict[str, float | None], token: float, latency: float) -> None:
    router = informed().router
    one = router.decide(features, token, latency)
    table = np.array([[np.nan if features[n] is None else features[n] for n in NAMES]] * 2, dtype=float)
    found = router.decide_many(table, NAMES, Weights(token, latency))
    assert [STRATEGIES[c] for c in found.columns] == [one.strategy] * 2
    assert found.tiers == (one.tier,) * 2


@given(rows, weight, weight)
@settings(max_examples=60, deadline=None)
def test_a_decision_agrees_with_itself(features: dict[str, float | None], token: float, latency: float) -> None:
    decision = informed().router.decide(features, token, latency)
    assert decision.strategy == strategy_of(decision.need_rag, decision.need_cot)
    assert (decision.tier == STATIC) == (decision.p_rag is None)
    if decision.p_rag is not None and decision.p_cot is not None:
        assert decision.need_rag == (decision.p_rag > 0.5)
        assert decision.need_cot == (decision.p_cot > 0.5)
    unknown = {name for name, value in features.items() if value is None or not np.isfinite(value)}
    assert set(decision.missing) == unknown & set(decision.features_used)


@given(st.permutations(NAMES))
@settings(max_examples=20, deadline=None)
def test_the_order_and_company_of_features_do_not_matter(names: list[str]) -> None:
    values = dict(zip(NAMES, needs_profile(1, seed=9).features[0].tolist(), strict=True))
    router = informed().router
    shuffled = {**{name: values[name] for name in names}, "something_else": 3.0}
    assert router.decide(shuffled, 0.2) == router.decide(values, 0.2)


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=5),
    st.sets(st.sampled_from(range(4)), min_size=1),
)
def test_the_choice_is_the_most_probable_of_those_allowed(pairs: list[tuple[float, float]], allowed: set[int]) -> None:
    logits, columns = np.array(pairs), tuple(sorted(allowed))
    for row, column in zip(logits, joint(logits, columns).argmax(axis=1), strict=True):
        by_hand = [0.0, row[0], row[1], row[0] + row[1]]
        assert column in allowed
        assert by_hand[column] == max(by_hand[c] for c in columns)


def test_numpy_computes_what_torch_trained() -> None:
    policy = informed().router.tiers[0].decider
    assert isinstance(policy, Policy)
    asked = np.array([[0.0, 0.3], [1.0, 0.0], [0.1, 0.1]])
    read = policy.reader.read(needs_profile(3, seed=3))
    rows = [policy.inputs(read[i : i + 1], Weights(*pair)) for i, pair in enumerate(asked.tolist())]
    inputs = np.concatenate(rows)
    layers = policy.layers
    parts = [torch.from_numpy(p) for p in (layers.w1, layers.b1, layers.w2, layers.b2, layers.w3, layers.b3)]
    members = len(layers.w1)
    shown = torch.from_numpy(inputs[:, :-2]).expand(members, -1, -1)
    weights = torch.from_numpy(asked).float().expand(members, -1, -1)
    expected = _forward(parts, shown, weights).numpy()
    np.testing.assert_allclose(layers.logits(inputs), expected, rtol=1e-4, atol=1e-4)


def test_encoded_weights_tell_the_static_utilities() -> None:
    means = np.array([[0.2, 0.5, 0.4, 0.6], [0.1, 0.7, 0.3, 1.0], [0.1, 0.3, 0.8, 1.0]])
    encoded = encode_weights(np.array([[0.0, 0.0], [1.0, 0.0]]), means)
    np.testing.assert_allclose(encoded[0], [0, 0, -4, -1, -2, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(encoded[1, :2], [1, 0])
    np.testing.assert_allclose(encoded[1, 2:6], [0, -3, 0, -4], atol=1e-12)  # .1 -.2 .1 -.4


@pytest.mark.parametrize(("token", "latency"), [(-0.1, 0), (0, -1), (float("nan"), 0), (0, float("inf"))])
def test_bad_weights_are_refused(token: float, latency: float) -> None:
    with pytest.raises(InputError, match="expected a finite number from 0"):
        informed().router.decide({}, token, latency)


def _asking(router: Router) -> Router:
    """The same router, preferring to ask question by question whether to draft."""
    return preferring(router, "asking")


def test_a_draft_is_wanted_for_some_questions_and_the_full_tier_decides_those() -> None:
    router, profile, weights = _asking(informed().router), needs_profile(300, seed=9), Weights(0.3, 0.1)
    found = router.decide_many(profile.features, profile.feature_names, weights)
    columns, tiers = found.columns, found.tiers
    rows = [dict(zip(NAMES, row.tolist(), strict=True)) for row in profile.features]
    bare = [{n: v for n, v in row.items() if not n.startswith("draft_")} for row in rows]
    wanted = [router.wants_draft(row, weights) for row in bare]
    assert [tier == "full" for tier in tiers] == wanted
    assert set(router.features_wanted(weights)) == set(NAMES)
    for row, with_draft, wants, column in zip(bare, rows, wanted, columns, strict=True):
        one = router.decide(with_draft if wants else row, 0.3, 0.1)
        assert one.strategy == STRATEGIES[column]
        assert one.fallback_reason == ""
        if wants:
            assert not any(is_draft(name) for name in router.decide(row, 0.3, 0.1).features_used)


def test_a_tier_that_asks_needs_one_that_reads_the_draft() -> None:
    router = informed().router
    with pytest.raises(InputError, match="no full tier"):
        replace(router, tiers=router.tiers[1:])


def test_without_a_draft_the_lean_tier_decides_and_says_so() -> None:
    router = _with_full_preferred(informed().router)
    values = dict(zip(NAMES, needs_profile(1, seed=9).features[0].tolist(), strict=True))
    assert router.decide(values, 0.2).tier == "full"
    lean = router.decide({n: v for n, v in values.items() if not n.startswith("draft_")}, 0.2)
    assert lean.tier not in ("full", STATIC)
    assert "no draft features" in lean.fallback_reason
    assert not any(name.startswith("draft_") for name in lean.features_used)


def _with_full_preferred(router: Router) -> Router:
    """The same router, the full tier's held-out gains raised so that it is the first choice."""
    return preferring(router, "full")


def test_latency_weights_need_a_router_that_knows_latency() -> None:
    router = replace(informed().router, has_latency=False)
    with pytest.raises(InputError, match="trained without latencies"):
        router.decide({}, 0.1, 0.1)


@pytest.mark.parametrize("kind", ["network", "stump", "linear", "forest"])
def test_a_saved_router_decides_as_the_live_one(tmp_path: Path, kind: str) -> None:
    trained = informed()
    first = next(tier.name for tier in trained.router.tiers if tier.decider.kind == kind)
    router = preferring(trained.router, first)
    opened = replace(router.guard, any=replace(router.guard.any, caution=-1e9))
    trained = replace(trained, router=replace(router, guard=opened))
    save_router(tmp_path / "router", trained.router, training_record(trained))
    loaded = load_router(tmp_path / "router")
    assert loaded.tier_at(Weights(0.1)).name == trained.router.tier_at(Weights(0.1)).name == first
    profile = needs_profile(50, seed=6)
    for token in (0.0, 0.1, 1.0):
        live, saved = (
            r.decide_many(profile.features, profile.feature_names, Weights(token, 0.1))
            for r in (trained.router, loaded)
        )
        np.testing.assert_array_equal(live.columns, saved.columns)
        np.testing.assert_array_equal(live.looked, saved.looked)
        assert live.tiers == saved.tiers
    values = dict(zip(NAMES, profile.features[0].tolist(), strict=True))
    assert loaded.decide(values, 0.2, 0.1) == trained.router.decide(values, 0.2, 0.1)


def test_a_router_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    trained = informed()
    router = replace(trained.router, source={"model": "a", "corpus": "c", "prompts": "p", "k": 5})
    save_router(tmp_path / "router", router, {})
    load_router(tmp_path / "router", {"model": "a", "k": 5})
    with pytest.raises(ArtifactMismatchError) as caught:
        load_router(tmp_path / "router", {"model": "b", "corpus": "c", "prompts": "q", "k": 5})
    assert "model" in caught.value.problem
    assert "prompts" in caught.value.problem
    assert "corpus" not in caught.value.problem
    assert "train" in caught.value.remedy


def test_damaged_routers_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "router"
    save_router(folder, informed().router, {})
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "kind": "apportion.plan"}))
    with pytest.raises(ArtifactMismatchError, match=r"apportion\.plan"):
        load_router(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="not complete"):
        load_router(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    data = (folder / "router.safetensors").read_bytes()
    (folder / "router.safetensors").write_bytes(data[:-4] + b"abcd")
    with pytest.raises(ArtifactCorruptError):
        load_router(folder)
