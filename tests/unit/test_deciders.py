"""Cheap deciders, the second decision and the guard, each against an answer that is known."""

from dataclasses import replace

import numpy as np
import pytest

from apportion.core.errors import InputError
from apportion.route.profile.profile import Profile
from apportion.route.router import Router, TrainingPlan, Weights, train_router
from apportion.route.router.candidate import feature_sets
from apportion.route.router.folds import split_folds
from apportion.route.router.gate import LATENCY_NODES, TOKEN_NODES, gate_of, guard_of
from apportion.route.router.linear import best_penalty, fit_linear, outcomes
from apportion.route.router.policy import mean_outcome
from apportion.route.router.reader import Reader
from apportion.route.router.stump import fit_stump
from apportion.route.router.train import usable
from apportion.route.router.utility import cost, scale_of, utility
from tests.synthetic_profiles import NAMES, look_profile, needs_profile

BRIEF = TrainingPlan(folds=4, seeds=1, steps=40, check_every=20)


def test_a_stump_finds_the_feature_and_the_threshold() -> None:
    profile = needs_profile(300, seed=1)
    sums = profile.quality[:, 1] < profile.quality[:, 3]
    features = np.stack([np.random.default_rng(0).normal(size=300), np.where(sums, 9.0, 5.0)], axis=1)
    profile = replace(profile, features=features, feature_names=("question_words", "question_chars"))
    costed, reader = cost(profile, scale_of(profile)), Reader.of(profile, profile.feature_names)
    stump = fit_stump(reader, reader.read(profile), costed)
    weights = Weights(0.1)
    chosen = stump.scores(reader.read(profile), weights).argmax(axis=1)
    assert len(set(chosen[sums].tolist())) == len(set(chosen[~sums].tolist())) == 1
    values, rows = utility(costed, weights), np.arange(300)
    best = max(
        np.where(sums, values[:, above], values[:, below]).mean() for above in range(4) for below in range(4)
    )  # fmt: skip
    assert values[rows, chosen].mean() == pytest.approx(best)


def test_a_linear_decider_predicts_what_is_linear_and_shrunk_far_is_the_best_static() -> None:
    profile = needs_profile(200, seed=3)
    costed, reader = cost(profile, scale_of(profile)), Reader.of(profile, NAMES)
    read = reader.read(profile)
    exact = read @ np.arange(len(NAMES) * 4.0).reshape(len(NAMES), 4) / 20
    linear = fit_linear(reader, read, replace(costed, quality=exact), 1e-9)
    np.testing.assert_allclose(linear.scores(read, Weights(0.0)), exact, atol=1e-6)
    shrunk = fit_linear(reader, read, costed, 1e9).scores(read, Weights(0.3))
    means = mean_outcome(costed)
    np.testing.assert_allclose(shrunk, np.tile(means[0] - 0.3 * means[1], (200, 1)), atol=1e-6)


def test_the_penalty_is_the_largest_where_features_are_noise() -> None:
    held = tuple(split_folds(("a",) * 200, 4, 0))
    noise = needs_profile(200, seed=5, signal=0.0)
    read = Reader.of(noise, NAMES).read(noise)
    assert best_penalty(read, outcomes(cost(noise, scale_of(noise)))[:, 0], held) >= 1.0
    assert best_penalty(read, read[:, :1], held) == 0.03


@pytest.fixture(scope="module")
def two_decisions() -> Router:
    return train_router(look_profile(300, seed=1), BRIEF, stages=2).router


def test_the_second_decision_reasons_where_the_passages_lack_the_answer(two_decisions: Router) -> None:
    test, weights = look_profile(400, seed=2), Weights(0.2)
    found = two_decisions.decide_many(test.features, test.feature_names, weights)
    held = test.keep_features(("rag_in_passages",)).features[:, 0] == 1
    assert found.looked.all()
    assert set(found.columns[held].tolist()) == {1}
    assert set(found.columns[~held].tolist()) == {3}
    for i in range(5):
        features = dict(zip(test.feature_names, test.features[i].tolist(), strict=True))
        first = two_decisions.decide(features, weights.token)
        assert (first.strategy, first.look, first.need_cot) == ("rag", True, False)
        second = two_decisions.decide_after(first, features)
        assert (second.strategy, second.look) == ("rag" if held[i] else "rag+cot", False)
        assert "rag_in_passages" in second.features_used


def test_both_retrieved_answers_are_paid_for() -> None:
    profile = look_profile(5, seed=3)
    scale = scale_of(profile)
    plain, looked = cost(profile, scale), cost(profile, scale, look=True)
    np.testing.assert_allclose(looked.tokens[:, 1], plain.tokens[:, 1])
    np.testing.assert_allclose(looked.tokens[:, 3], plain.tokens[:, 1] + plain.tokens[:, 3])
    once = (profile.latency_ms[:, 1] + profile.latency_ms[:, 3] - 2.0) / (scale.latency_ms or 0)  # one search of 2 ms
    np.testing.assert_allclose(looked.latency[:, 3], once)


def test_a_second_look_that_never_pays_is_not_offered(two_decisions: Router) -> None:
    at_once = two_decisions.tier_at(Weights(3.0))
    assert at_once is None or not at_once.looks
    alone = two_decisions.one_decision()
    assert alone.second is None
    assert not any(tier.looks for tier in alone.tiers)
    with pytest.raises(InputError, match="did not ask to look"):
        alone.decide_after(alone.decide({}, 0.2), {})


def test_without_features_of_the_answer_there_is_one_decision_and_that_is_said() -> None:
    trained = train_router(needs_profile(60, seed=1), BRIEF, stages=2)
    assert trained.router.second is None
    assert any("second decision: needs RAG" in reason for reason in trained.dropped)


def test_a_guard_believes_no_lucky_choice_among_many() -> None:
    """Twelve alike ways that gain nothing: the largest of their means lies above 1.64 errors in a third of the draws,
    the guard's gain in 7 %; more than 30 of 200 has probability < 1e-4."""
    rng, held = np.random.default_rng(0), split_folds(("a",) * 100, 5, 0)
    opened, fooled = 0, 0
    for _ in range(200):
        shared = rng.normal(size=(100, 1, 1))
        gains = [0.9 * shared + 0.44 * rng.normal(size=(100, 1, 1)) for _ in range(12)]
        gate = guard_of(gains, held, 1.64)
        opened += bool(gate.gain[0, 0] > 1.64 * gate.error[0, 0])
        fooled += max(one.mean() for one in gains) > 1.64 * 0.1
    assert opened <= 30
    assert fooled > 2 * opened


def test_a_guard_believes_a_choice_that_gains_everywhere() -> None:
    rng, held = np.random.default_rng(1), split_folds(("a",) * 200, 5, 0)
    gains = [rng.normal(mean, 1.0, size=(200, 2, 1)) for mean in (0.0, 0.5, -0.5)]
    gate = guard_of(gains, held, 1.64)
    assert (gate.gain > 1.64 * gate.error).all()
    assert gate.gain.mean() == pytest.approx(0.5, abs=0.2)


def test_the_grid_of_a_guard_is_the_nodes() -> None:
    shape = (30, len(TOKEN_NODES), len(LATENCY_NODES))
    gate = guard_of([np.zeros(shape)], split_folds(("a",) * 30, 3, 0), 1.64)
    assert gate.gain.shape == shape[1:]
    assert not gate.is_open(Weights(0.1, 0.1))


def test_every_way_to_decide_reads_what_it_may() -> None:
    sets = feature_sets(("question_words", "question_hash_00", "score_top", "draft_nll_mean", "rag_abstains"))
    assert sets["full"] == ("question_words", "score_top", "draft_nll_mean")
    assert sets["lean"] == ("question_words", "score_top")
    assert sets["linear_words"] == ("question_words", "question_hash_00")
    assert not any("rag_abstains" in names for names in sets.values())


def test_what_cannot_be_measured_when_asked_is_left_out_and_said() -> None:
    profile = needs_profile(60, seed=1).with_features(("difficulty",), np.random.default_rng(0).normal(size=(60, 1)))
    trained = train_router(profile, BRIEF)
    assert not any("difficulty" in tier.names for tier in trained.router.tiers)
    assert any("difficulty" in reason and "measures" in reason for reason in trained.dropped)


def test_a_profile_in_which_nothing_is_right_is_refused() -> None:
    profile: Profile = needs_profile(60, seed=1)
    with pytest.raises(InputError, match="quality of every answer to 60 questions is 0"):
        usable(replace(profile, quality=np.zeros((60, 4))))


def test_a_small_gain_at_every_node_opens_a_guard_that_no_node_alone_would() -> None:
    """Gains of a fifth of their spread, apart at each node: one node shows 1.4 errors on 50 questions, nine show 4."""
    rng, shape = np.random.default_rng(2), (50, len(TOKEN_NODES), len(LATENCY_NODES))
    held = split_folds(("a",) * 50, 5, 0)
    everywhere, once = rng.normal(0.2, 1.0, size=shape), rng.normal(0.0, 1.0, size=shape)
    alone = gate_of(everywhere, 1.64).open_share
    assert guard_of([everywhere], held, 1.64).open_share > alone + 0.3
    once[:, 6, 3] += 0.4
    assert not guard_of([once], held, 1.64).is_open(Weights(TOKEN_NODES[6], LATENCY_NODES[3]))


def test_a_guard_stays_shut_where_neighbours_gain_and_the_node_does_not() -> None:
    rng, held = np.random.default_rng(3), split_folds(("a",) * 100, 5, 0)
    gains = rng.normal(1.0, 0.5, size=(100, len(TOKEN_NODES), 1))
    gains[:, 4] -= 1.2
    gate = guard_of([gains], held, 1.64)
    assert [gate.is_open(Weights(token)) for token in TOKEN_NODES] == [node != 4 for node in range(len(TOKEN_NODES))]


@pytest.mark.parametrize("edge", [0, -1])
def test_a_guard_at_the_first_and_last_weight_is_held_by_the_node_itself_and_by_the_error_of_fewer(edge: int) -> None:
    rng, held = np.random.default_rng(4), split_folds(("a",) * 100, 5, 0)
    gains = rng.normal(1.0, 0.5, size=(100, len(TOKEN_NODES), 1))
    gains[:, edge] -= 1.2
    assert not guard_of([gains], held, 1.0).is_open(Weights(TOKEN_NODES[edge]))
    unit = 1 + np.array(TOKEN_NODES)
    alike = rng.normal(0.3, 1.0, size=(2000, len(TOKEN_NODES), 1)) * unit[:, None]
    error = guard_of([alike], split_folds(("a",) * 2000, 5, 0), 1.0).error[:, 0] / unit
    assert error[edge] > 1.1 * error[6]  # of two nodes, not three: 1 / sqrt(2) against 1 / sqrt(3)


def test_ways_are_compared_by_what_they_gain_around_a_node() -> None:
    lucky, steady = np.zeros((50, len(TOKEN_NODES), 1)), np.full((50, len(TOKEN_NODES), 1), 0.1)
    lucky[:, 5] = 0.2
    at = Weights(TOKEN_NODES[5])
    assert gate_of(lucky, 1.64).at(at)[0] > gate_of(steady, 1.64).at(at)[0]
    assert gate_of(steady, 1.64).assured(at) > gate_of(lucky, 1.64).assured(at)
    assert replace(gate_of(lucky, 1.64), worth=None).assured(at) == pytest.approx(0.2)  # of earlier versions
