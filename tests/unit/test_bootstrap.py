"""Intervals hold what they must: no difference is a tie, a clear one is not."""

import numpy as np

from apportion.core.bootstrap import Bootstrap


def test_rows_of_weights_sum_to_one_and_repeat_by_seed() -> None:
    weights = Bootstrap(20, seed=1).shares
    assert np.allclose(weights.sum(1), 1)
    assert np.array_equal(weights, Bootstrap(20, seed=1).shares)
    assert not np.array_equal(weights, Bootstrap(20, seed=2).shares)


def test_a_difference_that_changes_sign_between_windows_is_a_tie() -> None:
    values = np.random.default_rng(0).normal(size=64)
    assert Bootstrap(64, seed=0).interval(values - values.mean()).tie


def test_a_difference_of_one_sign_is_not() -> None:
    found = Bootstrap(64, seed=0).interval(np.random.default_rng(0).uniform(0.1, 0.2, size=64))
    assert not found.tie
    assert 0.1 < found.low < found.mean < found.high < 0.2


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = Bootstrap(400, seed=0).interval(values)
    assert np.isclose(found.high - found.low, 2 * 1.96 * values.std() / 20, rtol=0.1)
