"""Where the best routes are known the router finds them; where nothing can be known it does no harm."""

from dataclasses import replace

import numpy as np
import pytest
from route_decision import measure

from apportion.core.errors import InputError
from apportion.route.evaluation.contest import Oracle, Routed, RouterStatic, play
from apportion.route.profile.profile import Floats, Profile
from apportion.route.router.router import STATIC, Router
from apportion.route.router.train import train_router
from apportion.route.router.utility import Weights, weight_grid
from tests.synthetic_profiles import draft_profile, either_profile, needs_profile
from tests.trained_routers import QUICK, exclusive, informed, preferring, uninformed

GRID = weight_grid((0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0), (0.0, 0.3), timed=True)


def utilities(router: Router, profile: Profile, weights: Weights) -> dict[str, Floats]:
    """[n] utilities of the router, its best static strategy and the oracle, probes counted."""
    contenders = {"router": Routed(router), "static": RouterStatic(router), "oracle": Oracle(router.scale)}
    return {
        name: play(profile, contender.choose(profile, weights)).utility(weights, router.scale)
        for name, contender in contenders.items()
    }


def gap_closed(router: Router, profile: Profile) -> tuple[float, float]:
    """Share of the gap closed over the grid, and the smallest mean gain at any weights."""
    gains, gaps = [], []
    for weights in GRID:
        value = {name: float(u.mean()) for name, u in utilities(router, profile, weights).items()}
        gains.append(value["router"] - value["static"])
        gaps.append(value["oracle"] - value["static"])
    return sum(gains) / sum(gaps), min(gains)


def test_features_that_tell_everything_close_most_of_the_gap() -> None:
    closed, worst = gap_closed(informed().router, needs_profile(1500, seed=2))
    assert closed > 0.85
    assert worst > -0.005


def test_an_exclusive_or_of_the_two_needs_is_learnt() -> None:
    closed, worst = gap_closed(exclusive().router, either_profile(1500, seed=2))
    assert closed > 0.8
    assert worst > 0


def test_the_draft_is_made_where_it_tells_something() -> None:
    """Facts are drafted and sums are not; asking is better than always or never drafting."""
    router = train_router(draft_profile(500, seed=1), QUICK).router
    test, weights = draft_profile(800, seed=2), Weights(0.4)
    asking = preferring(router, "asking").decide_many(test.features, test.feature_names, weights)
    columns = router.decide_many(test.features, test.feature_names, weights).columns
    drafted, sums = np.array([tier == "full" for tier in asking.tiers]), np.array(test.dataset) == "sums"
    assert drafted[~sums].mean() > 0.9
    assert drafted[sums].mean() < 0.1
    assert set(columns[sums].tolist()) == {2}
    mean = {
        name: utilities(replace(router, tiers=tuple(t for t in router.tiers if t.name in kept)), test, weights)
        for name, kept in {"all": ("full", "lean", "asking"), "full": ("full",), "lean": ("lean",)}.items()
    }
    best = mean["all"]["router"].mean()
    assert best > mean["full"]["router"].mean() + 0.02
    assert best > mean["lean"]["router"].mean() + 0.01  # 0.013 by the costs


def test_half_the_signal_is_better_than_none_and_worse_than_all() -> None:
    router = train_router(needs_profile(500, seed=1, signal=0.5), QUICK).router
    closed, worst = gap_closed(router, needs_profile(1500, seed=2, signal=0.5))
    assert 0.2 < closed < 0.95
    assert worst > -0.01


@pytest.mark.parametrize("n", [24, 300])
def test_noise_does_no_harm(n: int) -> None:
    """With noise for features the best static strategy answers at (nearly) every weight.

    A gate opens wrongly with probability of about 5 % a node; at the nodes asked here, with these seeds, none
    costs more than its interval.
    """
    router = uninformed().router if n == 300 else train_router(needs_profile(n, seed=3, signal=0.0), QUICK).router
    test = needs_profile(1500, seed=2, signal=0.0)
    for weights in GRID:
        value = utilities(router, test, weights)
        difference = value["router"] - value["static"]
        interval = 1.96 * difference.std() / np.sqrt(test.n)
        assert difference.mean() >= -interval - 1e-12, weights


def test_without_gates_noise_would_do_harm() -> None:
    """The guard is what protects: the same networks, let loose, lose utility (what is shrunk by ridge need not)."""
    from apportion.route.evaluation.field import ungated

    router = uninformed().router
    networks = replace(router, tiers=tuple(tier for tier in router.tiers if tier.decider.kind == "network"))
    _, worst = gap_closed(ungated(networks), needs_profile(1500, seed=2, signal=0.0))
    assert worst < -0.005


def test_where_no_gate_is_open_no_probe_is_wanted() -> None:
    router = uninformed().router
    assert all(tier.gate.gain.max() <= 0.2 for tier in router.tiers)
    decision = router.decide({}, 0.1, 0.0)
    assert decision.tier == STATIC
    assert router.features_wanted(decision.weights) == ()
    assert "no held-out gain" in decision.fallback_reason


def test_heads_are_calibrated_enough_to_beat_the_base_rate() -> None:
    for tier in informed().tiers:
        for head in tier.calibration:
            assert head.brier < 0.6 * head.brier_base
            assert head.ece < 0.1


def test_training_is_deterministic_and_depends_on_the_seed() -> None:
    profile = needs_profile(80, seed=5)
    brief = replace(QUICK, folds=2, steps=40, check_every=20)
    one, two = (train_router(profile, brief, seed=7).router for _ in range(2))
    other = train_router(profile, brief, seed=8).router
    first = [r.tiers[0].decider.layers.w1 for r in (one, two, other)]
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


def test_profiles_that_cannot_teach_are_refused() -> None:
    profile = needs_profile(40)
    with pytest.raises(InputError, match="only direct was recorded"):
        train_router(profile.restrict(("direct",)), QUICK)
    with pytest.raises(InputError, match="no feature that varies"):
        train_router(profile.keep_features(()), QUICK)
    with pytest.raises(InputError, match="at least 2 folds of at least 4"):
        train_router(needs_profile(10), QUICK)


def test_two_strategies_restrict_the_choice() -> None:
    profile = needs_profile(200, seed=4, latency=False).restrict(("cot", "rag+cot"))
    router = train_router(profile, QUICK).router
    features = dict(zip(profile.feature_names, profile.features[0], strict=True))
    chosen = {router.decide(features, w).strategy for w in (0.0, 0.1, 0.5, 3.0)}
    assert chosen <= {"cot", "rag+cot"}
    assert all(tier.temperatures[1] is None for tier in router.tiers)  # reasoning is no choice here
    assert router.scale.strategy == "rag+cot"


def test_a_router_of_an_earlier_version_without_a_guard_is_timed_at_its_tiers() -> None:
    earlier = replace(informed().router, guard=None)
    found = measure(preferring(earlier, "full"), "full", 5)
    assert (found["decisions"], found["decided_by"]) == (5, {"full": 5})
