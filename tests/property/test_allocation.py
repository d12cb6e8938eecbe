"""The program equals brute force, never exceeds a budget, and is never worse with more."""

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.bits.chosen import frontier_budgets
from apportion.bits.compare.compare import require_grid
from apportion.bits.game import Costs
from apportion.bits.plan.allocate import allocate, plan_of
from apportion.bits.plan.budget import Budget, budget_from_bits, budget_from_bytes, parse_bytes
from apportion.bits.plan.plan import Plan, plan_from
from apportion.bits.plan.sensitivity import Sensitivity, choices_of
from apportion.core.artifact import plain
from apportion.core.errors import ArtifactCorruptError, BudgetError, InputError
from apportion.formats.width import rising, width_named
from tests.known_games import costs_table


def random_sensitivity(seed: int, players: int, widths: tuple[int, ...], scale: float = 1e-2) -> Sensitivity:
    rng = np.random.default_rng(seed)
    choices = choices_of(players, len(widths))
    pair = rng.normal(size=(len(choices), len(choices))) * scale
    pair = pair + pair.T
    pair[choices[:, 0][:, None] == choices[:, 0][None, :]] = 0
    parameters = rng.integers(3, 40, size=players) * 32
    sizes = [[int(n) * bits // 8 + 16 for bits in widths] for n in parameters]
    costs = costs_table(sizes, widths, parameters.tolist(), 100)
    return Sensitivity("test", choices, rng.normal(size=len(choices)) * scale, pair, 2.0, costs, {})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), players=st.integers(1, 10), share=st.floats(0, 1))
def test_equals_brute_force_on_two_widths(seed, players, share):
    found = random_sensitivity(seed, players, (2, 4))
    check_against_brute_force(found, share)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), players=st.integers(1, 6), share=st.floats(0, 1))
def test_equals_brute_force_on_three_widths(seed, players, share):
    check_against_brute_force(random_sensitivity(seed, players, (2, 3, 4)), share)


@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force_on_fourteen_blocks(seed):
    check_against_brute_force(random_sensitivity(seed, 14, (2, 4)), 0.3 + 0.2 * seed)


def brute_force(found: Sensitivity, budget: Budget) -> Plan:
    """The same optimum by looking at every assignment within the budget."""
    costs = found.costs
    everything = product(range(len(costs.widths)), repeat=len(costs.players))
    fitting = (item for item in everything if costs.spent(item) <= budget.player_bytes)
    return plan_of(found, budget, min(fitting, key=found.predict))


def check_against_brute_force(found: Sensitivity, share: float) -> None:
    low, high = found.costs.bytes[:, 0].sum(), found.costs.bytes[:, -1].sum()
    budget = Budget(int(low + share * (high - low)), "test")
    plan, reference = allocate(found, budget), brute_force(found, budget)
    assert plan.player_bytes <= budget.player_bytes
    assert plan.optimal
    assert plan.predicted_nll == pytest.approx(reference.predicted_nll, abs=1e-8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_larger_budget_is_never_worse(seed):
    found = random_sensitivity(seed, 9, (2, 4))
    plans = [allocate(found, budget_from_bits(found.costs, bits)) for bits in (2, 2.3, 2.6, 2.9, 3.2, 3.5, 4)]
    losses = [plan.predicted_nll for plan in plans]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(losses))
    for plan in plans:
        assert plan.player_bytes == found.costs.spent(plan.assignment) <= plan.budget_bytes


def test_scale_of_the_costs_does_not_matter():
    small, large = random_sensitivity(1, 8, (2, 4), 1e-9), random_sensitivity(1, 8, (2, 4), 1e3)
    assert (
        allocate(small, budget_from_bits(small.costs, 3)).assignment
        == allocate(large, budget_from_bits(large.costs, 3)).assignment
    )


def test_excluded_plans_give_the_next_best():
    found = random_sensitivity(4, 6, (2, 4))
    budget = budget_from_bits(found.costs, 3)
    first = allocate(found, budget)
    second = allocate(found, budget, exclude=(first.assignment,))
    assert second.assignment != first.assignment
    assert second.predicted_nll >= first.predicted_nll - 1e-9


def test_a_width_that_the_budget_does_not_ask_for_is_said():
    found = random_sensitivity(2, 5, (2, 4))
    largest = budget_from_bits(found.costs, 4)
    cheap = replace(found, linear=np.abs(found.linear), pair=np.zeros_like(found.pair))
    assert allocate(cheap, largest).asked == largest.asked
    noisy = replace(cheap, linear=np.where(np.arange(len(cheap.linear)) == 1, -0.01, cheap.linear))
    plan = allocate(noisy, largest)
    assert plan.avg_bits < 4
    assert plan.asked.startswith(f"{largest.asked}; 1 players below the highest width by estimates under zero")
    assert "under zero" not in allocate(noisy, budget_from_bits(found.costs, 3)).asked


def test_budgets():
    found = random_sensitivity(2, 5, (2, 4)).costs
    low, high = found.spent(found.uniform(0)), found.spent(found.uniform(-1))
    assert budget_from_bits(found, 2).player_bytes == low
    assert budget_from_bits(found, 4).player_bytes == high
    assert budget_from_bits(found, 3).player_bytes == (low + high) // 2
    assert budget_from_bytes(found, low + 100).player_bytes == low
    with pytest.raises(BudgetError, match="1 bytes short of the smallest plan"):
        budget_from_bytes(found, low + 99)
    above = budget_from_bytes(found, high + 101)
    assert above.player_bytes == high
    assert ", 1 more than the largest plan takes (all at " in above.asked
    with pytest.raises(BudgetError, match=r"--avg-bits 4\.5: expected from 2"):
        budget_from_bits(found, 4.5)


def grouped_costs(names: str) -> Costs:
    """Five players of widths with groups of their own, in exact bytes."""
    widths, parameters = rising(width_named(name, 64) for name in names.split(",")), [256, 512, 512, 1024, 256]
    sizes = [[int(n * width.bits_with_scales / 8) for width in widths] for n in parameters]
    found = costs_table(sizes, [int(width.bits) for width in widths], parameters, 100)
    return replace(found, widths=widths)


@pytest.mark.parametrize("names", ["w2g32,w3g64,w4g64", "w3g64,w2g8,w4g64", "w2g64,w2g16,w3g16,w4g64", "2,3,4"])
@pytest.mark.parametrize("bits", [2, 2.3, 2.75, 3, 3.4, 4])
def test_no_mix_of_group_sizes_has_more_bits_than_asked_for(names: str, bits: float) -> None:
    costs = grouped_costs(names)
    if bits < costs.widths[0].bits:
        with pytest.raises(BudgetError, match=f"expected from {costs.widths[0].bits}"):
            budget_from_bits(costs, bits)
        return
    budget = budget_from_bits(costs, bits)
    everything = product(range(len(costs.widths)), repeat=len(costs.players))
    fitting = [item for item in everything if costs.spent(item) <= budget.player_bytes]
    assert max(map(costs.average_bits, fitting)) <= bits


def test_a_width_of_fewer_bits_and_smaller_groups_may_be_the_largest() -> None:
    costs = grouped_costs("w3g64,w2g8")
    assert [width.name for width in costs.widths] == ["w3g64", "w2g8"]
    first, *_, last = (budget.player_bytes for budget in frontier_budgets(costs))
    assert (first, last) == (costs.spent(costs.uniform(0)), costs.spent(costs.uniform(-1)))
    assert budget_from_bits(costs, 3).player_bytes == last
    require_grid([3], costs.widths)
    with pytest.raises(BudgetError, match=r"--avg-bits 2\.5: expected from 3 .* to 3"):
        budget_from_bits(costs, 2.5)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24MB", 24_000_000),
        ("1 GiB", 1 << 30),
        ("123", 123),
        ("1.5kb", 1500),
        ("5G", 5 * 10**9),
        ("2,300,000", 2_300_000),
    ],
)
def test_sizes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "3 parsecs", "1e9", "2,30", "1.5.2MB"])
def test_what_is_not_a_size(text):
    with pytest.raises(InputError, match="not a size"):
        parse_bytes(text)


def test_a_plan_reads_back():
    found = random_sensitivity(2, 5, (2, 3, 4))
    plan = allocate(found, budget_from_bits(found.costs, 2.7))
    again = plan_from(plain(plan))
    assert plain(again) == plain(plan)
    assert (again.assignment, again.by_name()) == (plan.assignment, plan.by_name())


def test_a_solver_out_of_time_gives_the_first_plan_it_finds():
    found = random_sensitivity(3, 12, (2, 4))
    budget = budget_from_bits(found.costs, 3.0)
    assert allocate(found, budget, seconds=0.0).player_bytes <= budget.player_bytes


@pytest.mark.parametrize("wrong", [[0, 1], [0, 1, 2], [0, 1, -1]])
def test_a_plan_that_does_not_fit_its_players_is_refused(wrong):
    found = random_sensitivity(1, 3, (2, 4))
    saved = plain(allocate(found, budget_from_bits(found.costs, 3.0)))
    with pytest.raises(ArtifactCorruptError, match="for each of 3 players"):
        plan_from({**saved, "assignment": wrong})
