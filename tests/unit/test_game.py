"""Values equal naive evaluation, shared prefixes are computed once, and a log continues to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.bits.game.bank import WeightBank, bank_of, round_all
from apportion.bits.game.game import (
    MeasuredGame,
    block_states,
    decode,
    encode,
    naive_values,
    trie_edges,
)
from apportion.bits.game.players import Player, players_of, uniform
from apportion.bits.game.spqe import coalitions, draw_permutations
from apportion.bits.rounding.nearest import Nearest
from apportion.core.device import place
from apportion.core.errors import NumericError
from apportion.core.log import AppendLog
from apportion.models.pretrained import load_model
from apportion.models.text import Windows
from tests.tiny_models import KINDS


def text(count: int = 5, tokens: int = 20) -> Windows:
    ids = torch.randint(2, 150, (count, tokens), generator=torch.Generator().manual_seed(3))
    return Windows(ids, "test")


def bank_for(folder, kind: str = "blocks", widths: tuple[int, ...] = (2, 4)) -> WeightBank:
    staged = load_model(str(folder), place("cpu", "float32"))
    return bank_of(staged, players_of(staged.layout, kind), round_all(staged, Nearest(), widths, 32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("players", ["blocks", "linears"])
def test_values_equal_naive_whole_model_evaluation(checkpoint, kind, players):
    bank = bank_for(checkpoint(kind), players, (2, 3, 4))
    rng = np.random.default_rng(0)
    wanted = [tuple(rng.choice([2, 3, 4], size=len(bank.players)).tolist()) for _ in range(9)]
    game = MeasuredGame(bank, text())
    np.testing.assert_allclose(game.values(wanted).mean(1), naive_values(bank, text(), wanted), rtol=1e-5)
    assert np.ptp(game.values(wanted).mean(1)) > 1e-4  # the widths really change something


def test_block_forwards_equal_the_tries_count_and_nothing_is_measured_twice(checkpoint):
    bank = bank_for(checkpoint("llama"))
    wanted = coalitions(draw_permutations(4, 6, seed=0), 2, 4)
    game = MeasuredGame(bank, text())
    first = game.values(wanted)
    paths = {block_states(bank.players, 4, item) for item in wanted}
    assert game.counts.block_forwards == trie_edges(paths) == count_prefixes(paths)
    assert game.counts.evaluations == len(set(wanted))
    assert game.counts.naive_block_forwards == len(wanted) * 4 == (6 * 4 + 1) * 4
    again = game.values(wanted)
    assert game.counts.evaluations == len(set(wanted))
    np.testing.assert_array_equal(first, again)


def count_prefixes(paths: set) -> int:
    """Distinct non-empty prefixes: the trie's edges, by another road."""
    return len({path[:depth] for path in paths for depth in range(1, len(path) + 1)})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([(2,), (3,), (4,)])] * 5), min_size=1, max_size=30))
def test_trie_edges_count_distinct_prefixes(paths):
    assert trie_edges(paths) == count_prefixes(set(paths))


def test_sixteen_blocks_and_a_hundred_permutations_need_a_third_of_naive():
    wanted = coalitions(draw_permutations(16, 100, seed=0), 2, 4)
    players = tuple(Player(str(i), i, ("x",)) for i in range(16))
    edges = trie_edges(block_states(players, 16, item) for item in wanted)
    assert len(wanted) * 16 / edges >= 3.6


def test_a_log_continues_to_the_bit(checkpoint, tmp_path):
    bank = bank_for(checkpoint("qwen3"))
    wanted = coalitions(draw_permutations(4, 4, seed=1), 2, 4)
    whole = MeasuredGame(bank, text()).values(wanted)
    with AppendLog(tmp_path / "log", {"a": 1}, resume=False) as log:
        MeasuredGame(bank, text(), log).values(wanted[3:7])
    with AppendLog(tmp_path / "log", {"a": 1}, resume=True) as log:
        game = MeasuredGame(bank, text(), log)
        resumed = game.values(wanted)
        assert len(game.resumed) == len(set(wanted[3:7]))
        assert game.counts.evaluations == len(set(wanted)) - len(game.resumed)
    np.testing.assert_array_equal(whole, resumed)


def test_the_checkpoints_own_weights_are_back_after_a_game(checkpoint):
    bank = bank_for(checkpoint("llama"))
    before = bank.staged.window_nll(text().windows)
    MeasuredGame(bank, text()).values([uniform(bank.players, 2)])
    np.testing.assert_array_equal(bank.staged.window_nll(text().windows), before)


def test_a_loss_that_is_not_finite_names_its_coalition(checkpoint):
    bank = bank_for(checkpoint("llama"))
    key = next(key for key in bank.weights if key[1] == 2)
    bank.weights[key].fill_(float("nan"))
    with pytest.raises(NumericError, match=r"coalition 2222 is not finite on windows \[0, 1, 2, 3, 4\]"):
        MeasuredGame(bank, text()).values([uniform(bank.players, 2)])
    assert np.isfinite(bank.staged.window_nll(text().windows)).all()  # the checkpoint's own weights are back


@given(st.lists(st.sampled_from([2, 3, 4, 8]), min_size=1, max_size=40))
def test_assignments_read_back(widths):
    assert decode(encode(tuple(widths))) == tuple(widths)
