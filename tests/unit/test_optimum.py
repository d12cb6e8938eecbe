"""The exhaustive optimum against brute force, and its refusals."""

from itertools import product

import numpy as np
import pytest

from apportion.bits.compare.optimum import assignment_at, exhaust, index_of, regret, require_exhaustible
from apportion.bits.plan import Budget
from apportion.core.errors import InputError
from apportion.formats import grid_width
from tests.known_games import KnownGame, costs_table, even_costs


def random_game(players: int, seed: int) -> KnownGame:
    values = np.random.default_rng(seed).normal(size=2**players)
    return KnownGame(players, lambda item: float(values[index_of(item)]))


def test_every_coalition_is_measured_once() -> None:
    game = random_game(5, 0)
    exhaust(game, even_costs(5))
    assert len(game.known) == 32


@pytest.mark.parametrize("seed", range(4))
def test_the_best_plan_equals_brute_force_with_unequal_sizes(seed: int) -> None:
    game = random_game(6, seed)
    sizes = np.random.default_rng(seed).integers(1, 9, size=6)
    costs = costs_table(np.stack([sizes, 3 * sizes], axis=1).tolist())
    found = exhaust(game, costs)
    for limit in (int(sizes.sum()), int(2 * sizes.sum()), int(3 * sizes.sum())):
        budget = Budget(limit, "test")
        allowed = [item for item in product((0, 1), repeat=6) if costs.spent(item) <= limit]
        best = min(allowed, key=game.value)
        assert found.best(budget) == best
        assert regret(found, best, budget) == 0
        assert min(regret(found, item, budget) for item in allowed) == 0


def test_the_best_plan_for_each_number_of_demoted_players() -> None:
    game = random_game(4, 7)
    for count, best in enumerate(exhaust(game, even_costs(4)).best_by_demoted()):
        assert best.count(0) == count
        assert game.value(best) == min(game.value(a) for a in product((0, 1), repeat=4) if a.count(0) == count)


def test_places_and_assignments_belong_together() -> None:
    assert all(index_of(assignment_at(place, 5)) == place for place in range(32))


@pytest.mark.parametrize(("players", "widths", "count"), [(17, (2, 4), "131,072"), (3, (2, 3, 4), "27")])
def test_what_cannot_be_enumerated_is_refused_with_its_count(players: int, widths: tuple[int, ...], count: str) -> None:
    with pytest.raises(InputError, match=count):
        require_exhaustible(players, tuple(grid_width(bits, 64) for bits in widths))
