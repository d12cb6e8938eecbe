"""Sequences decoded in slots: the same tokens as one at a time, whatever shares a pass, also when memory is short."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig

from apportion.core.errors import ServiceError
from apportion.route.llm import engine as engine_module
from apportion.route.llm.engine import Engine, queue_of, sees_all, take_family
from apportion.route.llm.generate import Row, generate
from apportion.route.llm.passes import Recorded
from tests.fake_cuda import Graph, install
from tests.integration.tiny_model import make_tiny_model

ENDS = frozenset([2])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("model"))).eval()


def rows(count: int = 11, *, beginning: int = 30) -> list[Row]:
    common = [5 + n % 90 for n in range(beginning)]
    return [Row([*common, *range(10, 11 + (7 * n) % 23)], 4 + (5 * n) % 17) for n in range(count)]


def alone(model: Any, asked: Sequence[Row]) -> list[list[int]]:
    for row in asked:
        generate(model, [row], end_ids=ENDS, pad_id=0)
    return [row.tokens for row in asked]


@pytest.mark.parametrize(("slots", "beginning"), [(1, 30), (3, 30), (4, 0), (16, 30), (64, 5)])
def test_tokens_and_probabilities_are_those_of_each_row_alone(model: Any, slots: int, beginning: int) -> None:
    """False alarms: only if two tokens tie to within rounding at one of some 130 steps."""
    engine = Engine(model, end_ids=ENDS, pad_id=0, slots=slots)
    assert engine.how.mode == "slots"
    together, one_by_one = rows(beginning=beginning), rows(beginning=beginning)
    engine.run(together)
    assert [row.tokens for row in together] == alone(model, one_by_one)
    for row, other in zip(together, one_by_one, strict=True):
        assert row.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert row.margins == pytest.approx(other.margins, abs=1e-4)
        assert row.latency_ms > 0
        assert row.shared_tokens == 29 if beginning == 30 else row.shared_tokens < len(row.prompt)
    again = rows(beginning=beginning)
    engine.run(again)  # over memory that holds the last run
    assert [row.tokens for row in again] == [row.tokens for row in together]


@pytest.mark.parametrize("ahead", [1, 3])
def test_steps_read_later_give_the_same_tokens(model: Any, ahead: int) -> None:
    """Some rows end by an end token, so that steps are begun for rows that have ended; slots are reused and moved."""
    engine, asked = Engine(model, end_ids=frozenset(range(0, 400, 7)), pad_id=0, slots=3), rows(17)
    at_once = rows(17)
    engine.run(at_once)
    assert any(row.stopped for row in at_once)
    assert not all(row.stopped for row in at_once)
    engine._ahead = ahead
    engine.run(asked)
    assert [row.tokens for row in asked] == [row.tokens for row in at_once]
    assert [row.logprobs for row in asked] == [pytest.approx(row.logprobs, abs=1e-4) for row in at_once]


class Replayed:
    """Stands for a CUDA graph: runs the step again, into the same tensors."""

    def __init__(self, run: Any, best: torch.Tensor, logits: torch.Tensor) -> None:
        self.run, self.best, self.logits = run, best, logits

    def replay(self) -> None:
        for held, new in zip((self.best, self.logits), self.run(), strict=True):
            held.copy_(new)


def test_recorded_steps_are_of_fixed_lengths_and_rows(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = Engine(model, end_ids=ENDS, pad_id=0, slots=16), rows(20)
    passes = engine._passes

    def record(memory: Any, count: int, length: int) -> Recorded:
        kept = memory.ids.clone(), memory.positions.clone()
        best, logits = passes.step(memory, count, length)
        memory.ids.copy_(kept[0])  # recording a graph does not run it
        memory.positions.copy_(kept[1])
        return Recorded(Replayed(lambda: passes.step(memory, count, length), best, logits), best, logits)

    monkeypatch.setattr(passes, "_record", record)
    engine.how.graph = True
    engine.run(asked)
    assert [row.tokens for row in asked] == alone(model, rows(20))
    assert engine.how.replayed_steps > engine.how.recorded == engine.how.plain_steps > 0
    assert engine._memory is not None
    assert {key[0] for key in engine._memory.steps} <= {1, 4, 16}


def test_a_new_memory_records_into_a_pool_of_its_own(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handles, used = iter(range(1, 9)), list[int]()

    class Pooled(Graph):
        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            super().capture_begin(pool)
            used.append(pool)

    install(monkeypatch, Pooled)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    passes = Engine(model, end_ids=ENDS, pad_id=0, slots=2)._passes
    first = passes.memory(2, 8)
    for memory in (first, first, passes.memory(2, 16)):
        passes.step(memory, 2, 4)
        passes._record(memory, 2, 4)
    assert used == [1, 1, 2]
    assert set(Graph.captures) == {model.device}  # a graph of another device would hold nothing


def test_why_a_step_could_not_be_recorded_is_kept(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = Engine(model, end_ids=ENDS, pad_id=0, slots=4), rows()

    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(engine._passes, "_record", refuse)
    engine.how.graph = True
    engine.run(asked)
    assert [row.tokens for row in asked] == alone(model, rows())
    assert not engine.how.graph
    assert engine.how.reason.endswith("operation not permitted when stream is capturing")
    assert (engine.how.replayed_steps, engine.how.plain_steps > 20) == (0, True)


def test_a_common_beginning_is_computed_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, end_ids=ENDS, pad_id=0, slots=4)
    seen: list[int] = []
    call = engine._passes._call

    def counted(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(ids.numel())
        return call(ids, *rest)

    monkeypatch.setattr(engine._passes, "_call", counted)
    asked = rows()
    engine.run(asked)
    steps = sum(len(row.tokens) for row in asked)
    assert sum(seen) < steps + 29 + 11 * 24 + 4 * max(len(row.tokens) for row in asked) + 11 * 8
    assert seen.count(29) == 1


def test_rows_of_one_family_are_taken_together_shortest_first() -> None:
    one, other = rows(3), [Row([7] * 40, 2), Row([7] * 33, 2)]
    queue = queue_of([*one, *other])
    taken, shared = take_family(queue, 10, 10_000)
    assert shared == 29
    assert [len(row.prompt) for row in taken] == sorted(len(row.prompt) for row in one)
    taken, shared = take_family(queue, 1, 10_000)
    assert (len(taken[0].prompt), shared) == (33, 31)
    assert take_family(queue, 5, 1)[0] == [other[0]]


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    model: Any, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    engine = Engine(model, end_ids=ENDS, pad_id=0, slots=8)
    engine._ahead = ahead
    step, begun = engine._passes.step, list[int]()

    def short_of_memory(memory: Any, count: int, length: int) -> Any:
        begun.append(count)
        if count > 2 and len(begun) % 3 == 0:  # the step before it is not read yet where results are read later
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return step(memory, count, length)

    monkeypatch.setattr(engine._passes, "step", short_of_memory)
    asked = rows()
    engine.run(asked)
    assert (engine.how.slots, engine.how.halved) == (2, 2)
    assert [row.tokens for row in asked] == alone(model, rows())
    monkeypatch.setattr(engine._passes, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))
    with pytest.raises(ServiceError, match="does not fit into memory"):
        engine.run(rows(2))


def test_errors_that_are_not_of_memory_are_raised(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, end_ids=ENDS, pad_id=0, slots=2)
    monkeypatch.setattr(engine._passes, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        engine.run(rows(2))


def test_models_with_windows_keep_their_own_cache() -> None:
    assert not sees_all(MistralConfig(sliding_window=4))
    assert sees_all(MistralConfig(sliding_window=None))
    config = LlamaConfig(
        vocab_size=120, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    config.layer_types = ["full_attention", "sliding_attention"]
    engine = Engine(model, end_ids=ENDS, pad_id=0, slots=4)
    assert (engine.how.mode, engine.how.graph) == ("batches", False)
    assert "more than keys and values" in engine.how.reason
    del config.layer_types
    asked = rows(4)
    engine.run(asked)
    assert [row.tokens for row in asked] == alone(model, rows(4))


def test_the_tolerance_refuses_another_mask(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apportion.route.llm.passes.causal_mask", lambda start, tokens, dtype, device: None)
    monkeypatch.setattr(engine_module.Passes, "_call", lambda self, ids, *_: torch.zeros(len(ids), 400))
    assert Engine(model, end_ids=ENDS, pad_id=0, slots=2).how.mode == "batches"
