"""Greedy demotion against its definition."""

import numpy as np

from apportion.bits.compare.greedy import demotion_path, first_within, steps_down
from apportion.bits.plan import Budget, budget_from_bits
from tests.known_games import KnownGame, costs_table, even_costs

LOSS = np.asarray([0.5, 0.1, 0.3, 0.2])


def additive(assignment: tuple[int, ...]) -> float:
    return float(LOSS @ (np.asarray(assignment) == 0))


def test_an_additive_game_is_demoted_in_order_of_its_losses_and_asks_for_each_step_once() -> None:
    game = KnownGame(4, additive)
    path = demotion_path(game, even_costs(4))
    assert path == [(1, 1, 1, 1), (1, 0, 1, 1), (1, 0, 1, 0), (1, 0, 0, 0), (0, 0, 0, 0)]
    assert len(game.known) == 1 + 4 + 3 + 2 + 1


def test_losses_are_weighed_per_byte_saved() -> None:
    costs = costs_table([[2, 100], [2, 4], [2, 4], [2, 4]])
    assert demotion_path(KnownGame(4, additive), costs)[1] == (0, 1, 1, 1)


def test_ties_go_to_the_first_player() -> None:
    assert demotion_path(KnownGame(3, lambda a: float(a.count(0))), even_costs(3))[1] == (0, 1, 1)


def test_three_widths_step_one_width_at_a_time() -> None:
    path = demotion_path(KnownGame(2, lambda a: float(sum(4.0**-place for place in a))), even_costs(2, (2, 3, 4)))
    assert path == [(2, 2), (1, 2), (1, 1), (0, 1), (0, 0)]
    assert steps_down((1, 0)) == [(0, 0)]


def test_a_budget_takes_the_first_plan_that_it_pays_for() -> None:
    costs = even_costs(4)
    path = demotion_path(KnownGame(4, additive), costs)
    assert first_within(path, costs, budget_from_bits(costs, 3.0)) == (1, 0, 1, 0)
    assert first_within(path, costs, Budget(11, "11 bytes")) == (1, 0, 0, 0)
