"""Identities of SPQE and its sensitivities; known games give back their coefficients."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.bits.game import Samples
from apportion.bits.game.spqe import chain, coalitions, draw_permutations, marginals
from apportion.bits.plan.sensitivity import estimate, sensitivity_from, shares
from apportion.core.artifact import plain
from apportion.core.errors import InputError
from apportion.formats import grid_width
from apportion.models.text import Windows
from tests.known_games import costs_table


def quadratic(seed: int, players: int) -> tuple[float, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 3.5, rng.normal(size=players), np.triu(rng.normal(size=(players, players)), 1)


def samples_of(value, players: int, permutations: int, seed: int = 0, antithetic: bool = False) -> Samples:
    """SPQE played on a function of the 0/1 vector of demoted players."""
    orders = draw_permutations(players, permutations, seed, antithetic=antithetic)
    wanted = coalitions(orders, 0, 1)
    sizes = [[10 + i, 20 + 2 * i] for i in range(players)]
    return Samples(
        costs=costs_table(sizes, parameters=[40] * players, fixed_bytes=7),
        windows=Windows(torch.zeros(1, 2, dtype=torch.long), "test"),
        orders=orders,
        values={item: np.asarray([value(np.asarray(item) == 0)]) for item in wanted},
        nll_fp=np.asarray([3.0]),
        settings={},
        counts={},
    )


def game_of(seed: int, players: int):
    c, b, w = quadratic(seed, players)
    return lambda q: c + b @ q + q @ w @ q


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    players=st.integers(2, 9),
    permutations=st.integers(2, 12),
    alpha=st.floats(0, 1),
)
def test_identities(seed, players, permutations, alpha):
    samples = samples_of(game_of(seed, players), players, permutations, seed)
    D = marginals(samples.orders, samples.means(), 0, 1)
    gap = samples.nll_low - samples.nll_high
    np.testing.assert_allclose(D.sum(1), gap, atol=1e-9)  # every permutation's marginals
    found = estimate(samples, "coopq", alpha=alpha)
    phi, C, a = (np.asarray(found.details[name]) for name in ("phi", "C", "a"))
    assert phi.sum() == pytest.approx(gap, abs=1e-9)
    np.testing.assert_allclose(C.sum(1), 0, atol=1e-9)
    np.testing.assert_allclose(a, phi + (1 - alpha) * np.diag(C), atol=1e-9)


def test_objective_is_the_papers():
    samples = samples_of(game_of(3, 5), 5, 20)
    found = estimate(samples, "coopq", alpha=0.5)
    a, K = np.asarray(found.details["a"]), np.asarray(found.details["K"])
    for q in itertools.product([0, 1], repeat=5):
        x = np.asarray(q, dtype=float)
        assignment = tuple(0 if one else 1 for one in q)
        assert found.predict(assignment) - found.intercept == pytest.approx(a @ x + x @ K @ x)


@pytest.mark.parametrize("players", [3, 8, 16])
def test_regression_recovers_a_quadratic_game(players):
    value = game_of(players, players)
    found = estimate(samples_of(value, players, 60), "regression")
    c, b, w = quadratic(players, players)
    assert found.intercept == pytest.approx(c, abs=1e-6)
    np.testing.assert_allclose(found.linear, b, atol=1e-6)
    np.testing.assert_allclose(found.pair, w + w.T, atol=1e-6)


def test_shapley_means_agree_with_shapiqs_exact_values():
    from shapiq import ExactComputer, Game

    players = 6
    rng = np.random.default_rng(5)
    table = {q: float(rng.normal()) for q in itertools.product([False, True], repeat=players)}

    class Tabled(Game):
        def value_function(self, coalitions):
            return np.asarray([table[tuple(bool(x) for x in row)] for row in coalitions])

    exact = ExactComputer(Tabled(n_players=players, normalize=False), n_players=players)("SV")
    reference = np.asarray([exact[(i,)] for i in range(players)])
    every = np.asarray(list(itertools.permutations(range(players))))
    means = {tuple(np.where(q, 0, 1).tolist()): v for q, v in ((np.asarray(k), v) for k, v in table.items())}
    np.testing.assert_allclose(marginals(every, means, 0, 1).mean(0), reference, atol=1e-9)
    few = estimate(samples_of(lambda q: table[tuple(bool(x) for x in q)], players, 400), "shapley")
    errors = np.asarray(few.details["phi_se"])
    assert np.all(np.abs(few.linear - reference) < 5 * errors)  # false alarm: 6 x 6e-7


def test_an_additive_game_has_no_variance_and_a_dummy_costs_nothing():
    b = np.asarray([0.3, 0.0, -0.1, 0.7])
    found = estimate(samples_of(lambda q: 1 + b @ q, 4, 7), "coopq")
    np.testing.assert_allclose(found.linear, b, atol=1e-12)
    np.testing.assert_allclose(found.pair, 0, atol=1e-12)


def test_symmetric_players_get_equal_estimates_under_antithetic_orders():
    found = estimate(samples_of(lambda q: float(q.sum()) ** 2, 2, 2, antithetic=True), "shapley")
    assert found.linear[0] == pytest.approx(found.linear[1])


@given(count=st.integers(1, 12), players=st.integers(1, 9), seed=st.integers(0, 50), antithetic=st.booleans())
def test_a_shorter_draw_is_the_beginning_of_a_longer_one(count, players, seed, antithetic):
    short = draw_permutations(players, count, seed, antithetic=antithetic)
    longer = draw_permutations(players, count + 5, seed, antithetic=antithetic)
    np.testing.assert_array_equal(short, longer[:count])
    np.testing.assert_array_equal(np.sort(short, axis=1), np.tile(np.arange(players), (count, 1)))


def test_chain_demotes_one_at_a_time():
    assert chain([2, 0, 1], 0, 2) == [(2, 2, 2), (2, 2, 0), (0, 2, 0), (0, 0, 0)]


def test_a_width_between_costs_its_share_of_the_squared_error():
    np.testing.assert_allclose(
        shares(tuple(grid_width(bits, 64) for bits in (2, 3, 4))), [1, (4.0**-3 - 4.0**-4) / (4.0**-2 - 4.0**-4)]
    )
    groups = shares(tuple(grid_width(2, size) for size in (64, 32, 16)))  # of the same bits
    assert groups[0] == 1 > groups[1] > 0


def test_what_is_refused():
    samples = samples_of(game_of(0, 3), 3, 1)
    with pytest.raises(InputError, match="needs at least 2"):
        estimate(samples, "coopq")
    with pytest.raises(InputError, match="choose from coopq"):
        estimate(samples, "magic")
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        estimate(samples, "coopq", alpha=1.5)


def test_regression_of_widths_that_spqe_never_measures_is_refused():
    samples = samples_of(game_of(0, 3), 3, 4)
    with pytest.raises(InputError, match="measures only w2g64 and w4g64"):
        estimate(replace(samples, costs=costs_table([[1, 2, 3]] * 3, (2, 3, 4))), "regression")


def test_a_sensitivity_reads_back():
    found = estimate(samples_of(game_of(1, 4), 4, 9), "coopq")
    again = sensitivity_from(plain(found))
    np.testing.assert_array_equal(again.linear, found.linear)
    np.testing.assert_array_equal(again.pair, found.pair)
    assert again.costs.players == found.costs.players
    assert again.details == found.details  # also before it is saved
    assert plain(again) == plain(found)
