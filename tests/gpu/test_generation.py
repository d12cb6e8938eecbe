"""Steps recorded as CUDA graphs give the tokens of steps that are not; needs torch and transformers only."""

from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from apportion.route.llm.engine import Engine
from apportion.route.llm.generate import Row, generate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ENDS = frozenset([2])


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return Qwen2ForCausalLM(config).to(device="cuda", dtype=torch.float32).eval()


def rows() -> list[Row]:
    common = list(range(5, 45))
    return [Row([*common, *range(60, 61 + (7 * n) % 90)], 4 + (5 * n) % 37) for n in range(40)]


@pytest.mark.parametrize("slots", [1, 8, 64])
def test_recorded_steps_give_the_same_tokens(model: Any, slots: int) -> None:
    """False alarms: only if two tokens tie to within rounding at one of some 800 steps; so 1 in 100 rows may differ."""
    engine = Engine(model, end_ids=ENDS, pad_id=0, slots=slots)
    recorded, alone = rows(), rows()
    engine.run(recorded)
    assert engine.how.graph, engine.how.reason
    for row in alone:
        generate(model, [row], end_ids=ENDS, pad_id=0)
    same = sum(one.tokens == other.tokens for one, other in zip(recorded, alone, strict=True))
    assert same >= len(alone) - 1


def test_memory_made_anew_is_recorded_anew(model: Any) -> None:
    """The pool of recorded steps ends with the last of them: a longer call drops them all."""
    engine = Engine(model, end_ids=ENDS, pad_id=0, slots=8)
    engine.run(rows())
    longer = [Row([*range(5, 300)], 8) for _ in range(8)]
    engine.run(longer)
    assert engine.how.graph, engine.how.reason
    assert engine.how.recorded > 0


def test_memory_that_runs_out_halves_the_batch(model: Any) -> None:
    total, own = torch.cuda.mem_get_info()[1], torch.cuda.memory_reserved()  # others may use the card too
    torch.cuda.set_per_process_memory_fraction((own + 64e6) / total)
    try:
        engine = Engine(model, end_ids=ENDS, pad_id=0, slots=4096)
        asked = [Row([5, 6, 7], 64) for _ in range(4096)]
        engine.run(asked)
        assert engine.how.halved >= 1
        assert all(row.done for row in asked)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
