"""Values equal naive evaluation, shared prefixes are computed once, and a log continues to the bit."""

from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.bits.game import (
    MeasuredGame,
    Player,
    WeightBank,
    costs_of,
    decode,
    encode,
    full_precision_nll,
    naive_values,
    players_of,
)
from apportion.bits.game import engine as engines
from apportion.bits.game.bank import CHEAP_TOKENS, DecodedCache, cache_room
from apportion.bits.game.game import block_states, reading, trie_edges
from apportion.bits.game.spqe import coalitions, draw_permutations
from apportion.bits.rounding import round_all
from apportion.bits.rounding.nearest import Nearest
from apportion.core.device import place
from apportion.core.errors import NumericError, OutOfMemoryError
from apportion.core.graphs import record
from apportion.core.log import AppendLog
from apportion.formats import COMPRESSED_TENSORS, grid_width
from apportion.models.load import load_staged
from apportion.models.text import Windows
from tests.fake_cuda import Graph, Stream, install
from tests.tiny_models import KINDS


def text(count: int = 5, tokens: int = 20) -> Windows:
    ids = torch.randint(2, 150, (count, tokens), generator=torch.Generator().manual_seed(3))
    return Windows(ids, "test")


def bank_for(folder, kind: str = "blocks", bits: tuple[int, ...] = (2, 4)) -> WeightBank:
    staged = load_staged(str(folder), place("cpu", "float32"))
    widths = tuple(grid_width(one, 32) for one in bits)
    costs = costs_of(staged, players_of(staged.layout, kind), widths, COMPRESSED_TENSORS, 0)
    return WeightBank(staged, costs, round_all(staged, Nearest(), widths))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("players", ["blocks", "linears"])
def test_values_equal_naive_whole_model_evaluation(checkpoint, kind, players):
    bank = bank_for(checkpoint(kind), players, (2, 3, 4))
    rng = np.random.default_rng(0)
    wanted = [tuple(rng.choice(3, size=len(bank.costs.players)).tolist()) for _ in range(9)]
    game = MeasuredGame(bank, text())
    np.testing.assert_allclose(game.values(wanted).mean(1), naive_values(bank, text(), wanted), rtol=1e-5)
    assert np.ptp(game.values(wanted).mean(1)) > 1e-4  # the widths really change something


def test_block_forwards_equal_the_tries_count_and_nothing_is_measured_twice(checkpoint):
    bank = bank_for(checkpoint("llama"))
    wanted = coalitions(draw_permutations(4, 6, seed=0), 0, 1)
    game = MeasuredGame(bank, text())
    first = game.values(wanted)
    paths = {block_states(bank.costs.players, 4, item) for item in wanted}
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
    wanted = coalitions(draw_permutations(16, 100, seed=0), 0, 1)
    players = tuple(Player(str(i), i, ("x",)) for i in range(16))
    edges = trie_edges(block_states(players, 16, item) for item in wanted)
    assert len(wanted) * 16 / edges >= 3.6


def test_a_log_continues_to_the_bit(checkpoint, tmp_path):
    bank = bank_for(checkpoint("qwen3"))
    wanted = coalitions(draw_permutations(4, 4, seed=1), 0, 1)
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
    MeasuredGame(bank, text()).values([bank.costs.uniform(0)])
    np.testing.assert_array_equal(bank.staged.window_nll(text().windows), before)


def test_a_loss_that_is_not_finite_names_its_coalition(checkpoint):
    bank = bank_for(checkpoint("llama"))
    key = next(key for key in bank.rounded if key[1].bits == 2)
    bank.rounded[key].scale.fill_(float("nan"))
    with pytest.raises(NumericError, match=r"coalition 0000 is not finite on windows \[0, 1, 2, 3, 4\]") as refused:
        MeasuredGame(bank, text()).values([bank.costs.uniform(0)])
    assert refused.value.remedy == "use a larger width or another --rounding"  # it was computed in float32
    assert np.isfinite(bank.staged.window_nll(text().windows)).all()  # the checkpoint's own weights are back


@given(st.lists(st.integers(0, 35), min_size=1, max_size=40))
def test_assignments_read_back(columns):
    assert decode(encode(tuple(columns))) == tuple(columns)


def test_a_run_embeds_its_text_once_and_games_beside_it_share_that(checkpoint, tmp_path):
    bank = bank_for(checkpoint("llama"))
    with (
        AppendLog(tmp_path / "one", {"a": 1}, resume=False) as one,
        AppendLog(tmp_path / "two", {}, resume=False) as two,
    ):
        game = MeasuredGame(bank, text(), one)
        game.values([bank.costs.uniform(0)])
        other = game.beside(two, game.known)
        other.values([bank.costs.uniform(0), bank.costs.uniform(1)])
        full_precision_nll(bank.staged, text())
        bank.staged.window_nll(text().windows)
    assert bank.staged.embeddings == 1
    assert other.counts.evaluations == 1  # the other value was known
    assert bank.costs.uniform(1) not in game.known


@pytest.mark.parametrize("cache", [0, 1 << 30])
def test_values_do_not_depend_on_what_is_kept_decoded(checkpoint, cache):
    bank = bank_for(checkpoint("qwen3"))
    wanted = coalitions(draw_permutations(4, 3, seed=2), 0, 1)
    expected = MeasuredGame(bank_for(checkpoint("qwen3")), text()).values(wanted)
    game = MeasuredGame(bank, text())
    game._start()
    bank.cache.drop("test")
    bank.cache.limit = cache
    np.testing.assert_array_equal(game.values(wanted), expected)
    assert bank.cache.held <= cache
    distinct = len(bank.rounded)
    assert (bank.cache.decodings > distinct) == (cache == 0)


def test_long_texts_keep_nothing_decoded_and_short_ones_say_how_much():
    assert cache_room("cpu", 10**6, CHEAP_TOKENS)[:2] == (0, False)
    assert cache_room("cpu", 10**6, 100)[:2] == (10**6, True)
    assert cache_room("cpu", 10**12, 100)[1] is False


def full_at(monkeypatch, bank, most_windows: int) -> None:
    """A device that holds no more than so many windows at once."""
    own = type(bank.staged).run_block

    def run(staged, block, hidden, embedded):
        if min(len(hidden), embedded.batch) > most_windows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(staged, block, hidden, embedded)

    monkeypatch.setattr(type(bank.staged), "run_block", run)


def test_out_of_memory_means_a_smaller_batch_and_the_result_says_so(checkpoint, monkeypatch):
    bank = bank_for(checkpoint("llama"))
    wanted = [bank.costs.uniform(0), bank.costs.uniform(1)]
    expected = MeasuredGame(bank_for(checkpoint("llama")), text()).values(wanted)
    full_at(monkeypatch, bank, 1)
    game = MeasuredGame(bank, text())
    np.testing.assert_allclose(game.values(wanted), expected, rtol=1e-5)
    assert game.execution()["memory"][0] == "decoded weights are not kept"
    assert game.execution()["memory"][-1] == "20 tokens at once"
    np.testing.assert_allclose(full_precision_nll(bank.staged, text()), bank.staged.window_nll(text().windows))


def test_a_device_too_small_for_one_window_is_an_error_and_no_traceback(checkpoint, monkeypatch):
    bank = bank_for(checkpoint("llama"))
    full_at(monkeypatch, bank, 0)
    with pytest.raises(OutOfMemoryError, match=r"one window of 20 tokens at a time \(given up before: decoded"):
        MeasuredGame(bank, text()).values([bank.costs.uniform(0)])
    with pytest.raises(OutOfMemoryError, match="one window of 20 tokens"):
        full_precision_nll(bank.staged, text())


def test_other_errors_are_not_taken_for_a_lack_of_memory(checkpoint, monkeypatch):
    bank = bank_for(checkpoint("llama"))

    def broken(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(type(bank.staged), "run_block", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        MeasuredGame(bank, text()).values([bank.costs.uniform(0)])


class Plain(engines.PlainEngine):
    def __init__(self):
        self.start, self.windows = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)
        self.staged = SimpleNamespace(layout=SimpleNamespace(block_count=1))
        self.bank = SimpleNamespace(cache=DecodedCache(0, True, "a test"))


def test_what_is_replayed_is_recorded_on_the_device_of_the_model_whichever_is_current(monkeypatch):
    """Recorded on another device's stream it would hold nothing, and every value would be the first one."""
    install(monkeypatch)
    engine = engines.ReplayEngine(Plain())
    engine._run("head", lambda: None)
    assert engine.recorded == 1
    assert Graph.captures == [engine.start.device]
    assert set(Stream.made_on) == {engine.start.device}


def test_graphs_of_weights_that_were_let_go_are_not_replayed(monkeypatch):
    """Another game of the same weights may run out of memory: what graphs point to is then anything."""
    install(monkeypatch)
    engine, ran = engines.ReplayEngine(Plain()), []
    engine._run("head", lambda: ran.append("recorded"))
    engine._run("head", lambda: ran.append("never"))
    assert (Graph.replays, engine.recorded, engine.mode) == (2, 1, "replay")
    engine.plain.bank.cache.drop("memory ran out")
    engine._run("head", lambda: ran.append("plainly"))
    assert ran == ["recorded", "recorded", "plainly"]
    assert (Graph.replays, engine.recorded, engine.mode) == (2, 0, "replay until: decoded weights were let go")


def test_weights_that_are_all_kept_stay_where_they_are_for_every_game(checkpoint):
    bank = bank_for(checkpoint("llama"))
    bank.choose_cache(20)
    assert bank.cache.whole
    own = bank.weight(next(iter(bank.rounded))[0], 0)
    bank.choose_cache(CHEAP_TOKENS)  # another game, whose text is so long that it would keep nothing
    assert bank.cache.whole
    assert bank.weight(next(iter(bank.rounded))[0], 0) is own


def test_one_thread_records_at_a_time(monkeypatch):
    """All record on one stream of a device: what a second thread ran there would be part of the first one's graph."""
    install(monkeypatch)
    inside, go_on, seen = Event(), Event(), []

    def slow():
        inside.set()
        assert go_on.wait(60)
        seen.append("first")

    threads = [
        Thread(target=record, args=(work, torch.device("cpu"))) for work in (slow, lambda: seen.append("second"))
    ]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    assert Graph.captures == [torch.device("cpu")]
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert seen == ["first", "second"]


def test_a_value_is_waited_for_on_the_device_that_it_comes_from(monkeypatch):
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda:1")

    class Event:
        def record(self, stream="of the current device"):
            waited.append(stream)

        def synchronize(self):
            waited.append("read")

    waited = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    read = reading(torch.ones(2).as_subclass(Elsewhere))
    assert waited == ["of cuda:1"]
    assert read().tolist() == [1, 1]
    assert waited == ["of cuda:1", "read"]
