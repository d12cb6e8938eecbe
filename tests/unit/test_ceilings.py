"""What there was to win: verdicts with known answers, ceilings by hand, signals against scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from apportion.core.bootstrap import Bootstrap, Interval
from apportion.core.errors import InputError
from apportion.route.evaluation.ceilings import ByDataset, RepeatedOracle, SameShares
from apportion.route.evaluation.contest import Oracle, Routed, play
from apportion.route.evaluation.evaluation import BETTER, GAINED, NOT_LEARNED, NOTHING, TOO_FEW, UNCLEAR, Gain
from apportion.route.evaluation.reach import questions_needed, reach
from apportion.route.evaluation.signals import auroc, signals
from apportion.route.router.gate import LATENCY_NODES, TOKEN_NODES, gate_of
from apportion.route.router.utility import Weights, scale_of
from tests.synthetic_profiles import needs_profile
from tests.trained_routers import informed

N = 400


def verdict(best: np.ndarray, router: np.ndarray, again: np.ndarray | None = None) -> str:
    """Of a best static strategy that always gets 0."""
    bootstrap, static = Bootstrap(N, 0), np.zeros(N)
    interval = bootstrap.interval(router)
    gain = Gain("best_static", interval, BETTER if interval.low > 0 else UNCLEAR)
    values = {"best_static": static, "knn": best, "router": router}
    return reach(values | ({"oracle_repeated": again} if again is not None else {}), gain, bootstrap).verdict


def test_nothing_to_win_is_told_from_not_learned_and_from_too_few() -> None:
    rng = np.random.default_rng(0)
    nothing, clear, noisy = np.zeros(N), rng.normal(0.1, 0.2, N), rng.normal(0.01, 1.0, N)
    assert verdict(clear, clear) == GAINED
    assert verdict(clear, nothing) == NOT_LEARNED
    assert verdict(nothing, nothing) == NOTHING
    assert verdict(noisy - noisy.mean() + 0.02, nothing) == TOO_FEW
    assert verdict(noisy - noisy.mean() + 0.02, nothing, again=nothing) == NOTHING  # what was gained does not repeat


def test_the_questions_needed_would_show_the_gain() -> None:
    """With that many questions the difference is shown in about 80 % of draws (66 to 92 with probability > .999)."""
    rng, gains = np.random.default_rng(1), np.random.default_rng(1).normal(0.1, 0.5, 5000)
    needed = questions_needed(gains)
    assert needed == pytest.approx((2.8 * gains.std() / gains.mean()) ** 2, rel=0.01)
    draws = rng.normal(0.1, 0.5, (200, needed))
    shown = np.abs(draws.mean(axis=1)) > 1.96 * draws.std(axis=1) / needed**0.5
    assert 0.66 < shown.mean() < 0.92
    assert questions_needed(-gains) is None


def test_knowing_the_data_set_gives_each_its_best() -> None:
    seen = needs_profile(200, seed=1)
    choice = ByDataset(seen, scale_of(seen)).choose(replace(seen, dataset=("new", *seen.dataset[1:])), Weights(0.3))
    for name in ("sums", "facts"):
        rows = [row for row in range(1, 200) if seen.dataset[row] == name]
        assert len(set(choice.columns[rows].tolist())) == 1
    assert len(set(choice.columns[1:].tolist())) == 2


def test_the_same_shares_are_the_routers_dealt_out_anew() -> None:
    router, test, weights = informed().router, needs_profile(300, seed=2), Weights(0.3)
    own, dealt = Routed(router).choose(test, weights), SameShares(router, 0).choose(test, weights)
    assert sorted(own.columns.tolist()) == sorted(dealt.columns.tolist())
    worth = [play(test, choice).utility(weights, router.scale).mean() for choice in (own, dealt)]
    assert worth[0] > worth[1] + 0.1


def test_an_oracle_of_another_run_is_not_lucky_in_this_one() -> None:
    first, again = needs_profile(300, seed=1, noise=0.2), needs_profile(300, seed=1, noise=0.2)
    flipped = np.random.default_rng(3).random((300, 4)) < 0.2
    again = replace(again, quality=np.abs(needs_profile(300, seed=1).quality - flipped))
    scale, weights = scale_of(first), Weights(0.1)
    own = play(first, Oracle(scale).choose(first, weights)).utility(weights, scale).mean()
    repeated = RepeatedOracle(again, scale).choose(first, weights)
    assert play(first, repeated).utility(weights, scale).mean() < own - 0.03
    with pytest.raises(InputError, match="lacks 1 of 300 questions"):
        RepeatedOracle(again.select(np.arange(299)), scale).choose(first, weights)


def test_another_run_of_more_pipelines_offers_only_those_that_are_judged() -> None:
    whole, weights = needs_profile(300, seed=1), Weights(0.1)
    judged, scale = whole.restrict(("direct", "rag")), scale_of(whole)
    chosen = RepeatedOracle(whole, scale).choose(judged, weights).columns
    assert set(chosen.tolist()) == {0, 1}


def test_opening_the_gates_keeps_the_tier_that_is_taken() -> None:
    gate = gate_of(np.random.default_rng(0).normal(0.1, 1, (50, len(TOKEN_NODES), len(LATENCY_NODES))), 1.0)
    opened, nodes = gate.opened(), [Weights(token) for token in TOKEN_NODES]
    assert [opened.assured(node) for node in nodes] == [gate.assured(node) for node in nodes]
    assert opened.open_share == 1.0 > gate.open_share


def test_areas_are_those_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 6, 200).astype(float), rng.random(200) < 0.3
    assert auroc(values, positive) == pytest.approx(roc_auc_score(positive, values))
    assert auroc(values, np.arange(200) < 4) is None


def test_a_signal_that_tells_is_found_in_each_set() -> None:
    profile = needs_profile(300, seed=1)
    found = {(one.family, one.feature): one for one in signals(profile)}
    assert {family for family, _ in found} == {"all", "facts", "sums"}
    telling = found["all", "nqc_top1_k10"]
    assert telling.retrieval_helps is not None
    assert telling.retrieval_helps > 0.7
    assert telling.group == "retrieval"
    assert "TOIS" in telling.source
    assert found["facts", "draft_nll_mean"].known == profile.dataset.count("facts")


def test_an_interval_of_gains_is_that_of_the_reachable() -> None:
    clear = np.random.default_rng(0).normal(0.1, 0.2, N)
    values = {"best_static": np.zeros(N), "logistic": clear, "router": clear / 2}
    bootstrap = Bootstrap(N, 0)
    found = reach(values, Gain("best_static", Interval(0.05, 0.04, 0.06), BETTER), bootstrap)
    assert found.by == "logistic"
    assert found.gain == bootstrap.interval(clear)
    assert found.closed == pytest.approx(0.05 / clear.mean())
