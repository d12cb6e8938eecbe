"""Laws of utility: the oracle is never beaten, regret is never negative, weights of zero leave quality."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core.errors import InputError
from apportion.route.profile.profile import Profile
from apportion.route.router.utility import (
    Weights,
    best_static,
    cost,
    labels,
    oracle,
    scale_of,
    utility,
)
from tests.synthetic_profiles import needs_profile

weights = st.builds(Weights, st.floats(0, 10), st.floats(0, 10))
profiles = st.builds(needs_profile, st.integers(1, 30), st.integers(0, 99), noise=st.sampled_from([0.0, 0.3]))


@given(profiles, weights)
def test_oracle_is_never_beaten(profile: Profile, w: Weights) -> None:
    values = utility(cost(profile, scale_of(profile)), w)
    assert (oracle(values)[:, None] >= values).all()


@given(profiles, weights)
def test_the_label_is_the_oracle(profile: Profile, w: Weights) -> None:
    costed = cost(profile, scale_of(profile))
    values = utility(costed, w)
    chosen = labels(values, costed.tokens)
    np.testing.assert_array_equal(values[np.arange(profile.n), chosen], oracle(values))


@given(profiles)
def test_weights_of_zero_leave_quality(profile: Profile) -> None:
    np.testing.assert_array_equal(utility(cost(profile, scale_of(profile)), Weights(0)), profile.quality)


@given(profiles, weights, st.floats(0.01, 100))
def test_the_unit_of_cost_does_not_matter(profile: Profile, w: Weights, factor: float) -> None:
    other = replace(profile, tokens=profile.tokens * factor, latency_ms=profile.latency_ms * factor)
    one, two = (utility(cost(p, scale_of(p)), w) for p in (profile, other))
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9)


@given(profiles, weights)
def test_utility_is_linear_in_the_weights(profile: Profile, w: Weights) -> None:
    costed = cost(profile, scale_of(profile))
    double = Weights(2 * w.token, 2 * w.latency)
    np.testing.assert_allclose(
        utility(costed, w), (utility(costed, double) + utility(costed, Weights(0))) / 2, atol=1e-9
    )


@given(profiles, weights)
@settings(max_examples=50)
def test_probes_cost_every_route_but_the_draft_is_free_for_direct(profile: Profile, w: Weights) -> None:
    scale = scale_of(profile)
    plain, probed = cost(profile, scale), cost(profile, scale, draft=True)
    np.testing.assert_array_equal(utility(plain, w)[:, 0], utility(probed, w)[:, 0])
    np.testing.assert_allclose(probed.tokens[:, 3] - plain.tokens[:, 3], plain.tokens[:, 0])
    np.testing.assert_allclose(probed.latency[:, 2] - plain.latency[:, 2], plain.latency[:, 0])
    searched = cost(profile, scale, search=True)
    np.testing.assert_allclose(searched.latency[:, 0] - plain.latency[:, 0], 2.0 / (scale.latency_ms or 0))
    np.testing.assert_array_equal(searched.latency[:, 1], plain.latency[:, 1])


@given(profiles, weights)
def test_best_static_has_the_highest_mean(profile: Profile, w: Weights) -> None:
    costed = cost(profile, scale_of(profile))
    means = utility(costed, w).mean(axis=0)
    assert means[best_static(costed, w)] == means.max()


def test_the_cheapest_of_equals_is_the_label() -> None:
    equal = np.ones((1, 4))
    assert labels(equal, np.array([[4.0, 3.0, 1.0, 2.0]])).tolist() == [2]


def test_strategies_that_may_not_be_chosen_never_are() -> None:
    profile = needs_profile(20).restrict(("rag", "cot"))
    costed = cost(profile, scale_of(profile))
    assert set(labels(utility(costed, Weights(1.0)), costed.tokens)) <= {1, 2}
    assert scale_of(profile).strategy == "rag"


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_weights_below_zero_or_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="expected a finite number from 0"):
        Weights(bad)
    with pytest.raises(InputError, match="latency weight"):
        Weights(0, bad)


def test_latency_weight_without_latencies_is_refused() -> None:
    profile = needs_profile(5, latency=False)
    with pytest.raises(InputError, match="holds no latencies"):
        utility(cost(profile, scale_of(profile)), Weights(0, 0.1))
