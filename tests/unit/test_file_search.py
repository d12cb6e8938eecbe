"""The search for a file on games whose optimum is known, its evaluations counted."""

from collections.abc import Sequence

import numpy as np
import pytest

from apportion.bits.game import Assignment, Costs, Player
from apportion.bits.gguf.finals import finalists, judged
from apportion.bits.gguf.ladders import DEFAULT_TYPES, ladder
from apportion.bits.gguf.search import falling, fit_factors, search_file, swaps
from apportion.formats.ggml import TYPES, ggml_width
from apportion.formats.width import Width

PLAYERS, RUNGS = 24, 4


class Known:
    """Additive costs with a quadratic interaction between neighbours; counts what it is asked."""

    def __init__(self, costs: Costs, true: np.ndarray, interaction: float = 0.0) -> None:
        self.costs, self.true, self.interaction, self.asked = costs, true, interaction, 0

    def value(self, plan: Assignment) -> float:
        own = self.true[np.arange(len(plan)), list(plan)]
        return float(own.sum() + self.interaction * np.sqrt(own[1:] * own[:-1]).sum())

    def values(self, assignments: Sequence[Assignment]) -> np.ndarray:
        self.asked += len(assignments)
        return np.asarray([[self.value(plan)] for plan in assignments])


def costs_of(rng: np.random.Generator) -> Costs:
    weights = rng.integers(1, 9, PLAYERS) * 320
    sizes = np.outer(weights, [18, 20, 22, 34]) // 32 * 32
    return Costs(
        players=tuple(Player(str(i), i, ()) for i in range(PLAYERS)),
        widths=tuple(Width(f"rung {i}", bits, 32) for i, bits in enumerate((4.5, 5.0, 5.5, 8.5))),
        bytes=sizes.astype(np.int64),
        bits=np.tile([4.5, 5.0, 5.5, 8.5], (PLAYERS, 1)),
        parameters=weights.astype(np.int64),
        fixed_bytes=1000,
    )


def setting(seed: int) -> tuple[np.random.Generator, Costs, np.ndarray, int]:
    """Random costs that fall with the rung, and a budget in the middle."""
    rng = np.random.default_rng(seed)
    costs = costs_of(rng)
    true = np.outer(rng.gamma(0.5, 1.0, PLAYERS) + 0.01, [1.0, 0.5, 0.25, 0.01])
    budget = (costs.spent(costs.uniform(0)) + costs.spent(costs.uniform(-1))) // 2
    return rng, costs, true, budget


def least(costs: Costs, table: np.ndarray, budget: int) -> float:
    """The exact optimum of additive costs, by dynamic programming over bytes / 32."""
    room = budget // 32
    best = np.zeros(room + 1)
    for player in range(PLAYERS):
        new = np.full(room + 1, np.inf)
        for rung in range(RUNGS):
            size = int(costs.bytes[player, rung]) // 32
            new[size:] = np.minimum(new[size:], best[: room + 1 - size] + table[player, rung])
        best = new
    return float(best[room])


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_prior_is_corrected(seed: int) -> None:
    rng, costs, true, budget = setting(seed)
    prior = true * np.exp(rng.normal(size=(PLAYERS, 1)))  # each player's costs off by a factor of e
    game = Known(costs, true)
    state = search_file(game, costs, prior, budget, evaluations=80, seed=0)
    first, optimum = next(iter(state.seen.values())), least(costs, true, budget)
    found = state.seen[state.best]
    assert game.asked == len(state.seen) <= 80
    assert costs.spent(state.best) <= budget
    assert found - optimum < 0.35 * (first - optimum) + 0.02 * optimum


def test_a_right_prior_is_optimal_at_once() -> None:
    _, costs, true, budget = setting(7)
    state = search_file(Known(costs, true), costs, true, budget, evaluations=1, seed=0)
    assert state.seen[state.best] <= 1.03 * least(costs, true, budget)


def test_interactions_do_not_break_it() -> None:
    rng, costs, true, budget = setting(3)
    prior = true * np.exp(0.5 * rng.normal(size=(PLAYERS, 1)))
    state = search_file(Known(costs, true, 0.5), costs, prior, budget, evaluations=80, seed=0)
    assert state.seen[state.best] <= next(iter(state.seen.values()))


def test_what_is_kept_is_never_behind_a_rival_that_the_costs_do_not_see() -> None:
    rng, costs, true, _ = setting(4)
    rival = costs.uniform(1)
    game = Known(costs, true)
    wrong = true[rng.permutation(PLAYERS)] * 1e3
    state = search_file(game, costs, wrong, costs.spent(rival), evaluations=2, seed=0, rivals={rival: "mix"})
    assert state.sources == {next(iter(state.seen)): "costs alone", rival: "mix"}
    assert state.seen[state.best] <= game.value(rival)


def test_finalists_are_ranked_by_the_other_text_and_hold_the_rival() -> None:
    _, costs, true, budget = setting(5)
    rival = costs.uniform(0)
    state = search_file(Known(costs, true), costs, true, budget, evaluations=20, seed=0, rivals={rival: "mix"})
    first = next(iter(state.seen))
    assert {rival, first, *state.ranked[:3]} == set(finalists(state))
    backwards = Known(costs, true[:, ::-1])  # text on which the smallest types are the best
    met = judged(state, backwards)
    assert met[0].assignment == rival
    assert met[0].source == "mix"
    assert [one.judged for one in met] == sorted(backwards.value(one.assignment) for one in met)
    assert [one.measured for one in met] == [state.seen[one.assignment] for one in met]


def test_the_same_seed_asks_the_same_plans() -> None:
    _, costs, true, budget = setting(1)
    runs = [search_file(Known(costs, true), costs, true[:, ::1], budget, evaluations=40, seed=5) for _ in range(2)]
    assert list(runs[0].seen) == list(runs[1].seen)


def test_swaps_stay_within_the_budget_and_are_new() -> None:
    _, costs, true, budget = setting(2)
    state = search_file(Known(costs, true), costs, true, budget, evaluations=10, seed=0)
    found = swaps(state)
    assert found
    assert all(costs.spent(plan) <= budget and plan not in state.seen for plan in found)


def test_factors_fall_back_to_a_common_one_where_nothing_is_learnt() -> None:
    rng = np.random.default_rng(0)
    x = rng.gamma(1.0, 1.0, (6, 40))
    factors, _ = fit_factors(x, 2 * x.sum(1))
    assert np.allclose(factors, 2, rtol=0.01)


def test_falling_costs_stay_as_they_are() -> None:
    table = np.outer([1.0, 3.0], [4.0, 2.0, 1.0])
    assert np.array_equal(falling(table), table)


@pytest.mark.parametrize("columns", [32, 64, 576, 768, 2048])
def test_ladders_rise_and_fit(columns: int) -> None:
    for types in (DEFAULT_TYPES, TYPES):
        rising, replaced = ladder(types, columns)
        bits = [ggml_width(kind).bits for kind in rising]
        assert bits == sorted(bits)
        assert all(columns % ggml_width(kind).group_size == 0 for kind in rising)
        assert set(replaced) <= set(types)
