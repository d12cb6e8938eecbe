"""The divergence of predictions: against whole logits made by transformers itself, and on known distributions."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from apportion.bits.divergence import Reference, TokenDivergence, divergence_of, reference_of, summarize
from apportion.bits.divergence import measure as module
from apportion.bits.divergence.chat import chat_windows, read_conversations
from apportion.bits.divergence.summary import kl_difference
from apportion.core.device import place
from apportion.core.errors import InputError, NumericError
from apportion.models.load import load_staged
from apportion.models.staged import StagedModel
from apportion.models.text import windows_of
from tests.tiny_models import make_tokenizer

CPU = place("cpu", "float32")


@pytest.fixture
def pair(checkpoint: Callable[..., Path]) -> tuple[StagedModel, StagedModel]:
    """A model and the same with rougher weights in its blocks."""
    reference, candidate = (load_staged(str(checkpoint("gemma2")), CPU) for _ in range(2))
    for path in candidate.originals:
        parameter = candidate.model.get_submodule(path).weight
        parameter.data = (parameter.data * 8).round() / 8
    return reference, candidate


@pytest.fixture
def windows(text_file: Path) -> torch.Tensor:
    return windows_of(text_file, make_tokenizer(), 24)[:6]


def naive(reference: StagedModel, candidate: StagedModel, windows: torch.Tensor) -> tuple[np.ndarray, ...]:
    """The figures from whole logits in float64."""
    with torch.inference_mode():
        p, q = (staged.model(input_ids=windows).logits[:, :-1].double() for staged in (reference, candidate))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    right = windows[:, 1:, None]
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    change = q.gather(-1, right).exp() - p.gather(-1, right).exp()
    return (
        kl.numpy(),
        (p.argmax(-1) == q.argmax(-1)).numpy(),
        change[..., 0].numpy(),
        -q.gather(-1, right)[..., 0].numpy(),
    )


@pytest.mark.parametrize("logit_bytes", [1, 160 * 4 * 7, 32 << 20])
def test_equals_whole_logits_in_any_chunks(
    pair: tuple[StagedModel, StagedModel],
    windows: torch.Tensor,
    logit_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(module.LOGIT_BYTES, "cpu", logit_bytes)
    found = divergence_of(reference_of(pair[0], windows), pair[1])
    kl, same, change, nll = naive(*pair, windows)
    assert kl.mean() > 1e-3, "the candidate must differ for this to prove anything"
    np.testing.assert_allclose(found.kl, kl, atol=1e-5)
    np.testing.assert_array_equal(found.same_top, same)
    np.testing.assert_allclose(found.change, change, atol=1e-5)
    np.testing.assert_allclose(found.nll, nll, atol=1e-4)


def test_a_model_does_not_diverge_from_itself(pair: tuple[StagedModel, StagedModel], windows: torch.Tensor) -> None:
    found = summarize(divergence_of(reference_of(pair[0], windows), pair[0]))
    assert abs(found.kl_999) < 1e-6
    assert found.same_top.mean == 1
    assert found.perplexity == found.reference_perplexity
    assert found.tokens == windows[:, 1:].numel()


def test_weights_of_the_reference_itself_may_change_in_its_blocks(
    pair: tuple[StagedModel, StagedModel], windows: torch.Tensor
) -> None:
    reference, candidate = pair
    elsewhere = divergence_of(reference_of(reference, windows), candidate)
    kept = reference_of(reference, windows)
    for path in reference.originals:
        reference.model.get_submodule(path).weight.data = candidate.model.get_submodule(path).weight.data
    np.testing.assert_array_equal(divergence_of(kept, reference).kl, elsewhere.kl)


def test_other_vocabularies_and_broken_logits_are_refused(
    pair: tuple[StagedModel, StagedModel], windows: torch.Tensor
) -> None:
    hidden = pair[0].last_hidden(windows)
    narrow = Reference(windows, hidden, lambda states: pair[0].logits(states)[..., :150])
    with pytest.raises(InputError, match="predicts 160 tokens and REFERENCE 150"):
        divergence_of(narrow, pair[1])
    broken = Reference(windows, hidden, lambda states: pair[0].logits(states) * float("nan"))
    with pytest.raises(NumericError, match="not finite"):
        divergence_of(broken, pair[1])


def test_quantiles_and_intervals_of_known_tokens() -> None:
    kl = np.zeros((10, 100), dtype=np.float32)
    kl[:, -1] = 1.0  # one token of a hundred, in every window
    right = np.ones_like(kl)
    found = summarize(TokenDivergence(kl, kl == 0, kl, right, 2 * right))
    assert (found.kl_mean.low, found.kl_mean.high) == pytest.approx((0.01, 0.01))
    assert (found.kl_median, found.kl_999) == (0, 1)
    assert found.change_rms.mean == pytest.approx(0.1)
    assert found.perplexity == pytest.approx(np.e)
    assert found.nll_change.mean == pytest.approx(-1)


def test_paired_difference_is_tighter_than_either_mean() -> None:
    rng = np.random.default_rng(0)
    kl = rng.gamma(1.0, 0.1, size=(40, 8)).astype(np.float32) * rng.gamma(1.0, 1.0, size=(40, 1)).astype(np.float32)
    one, other = (TokenDivergence(item, item > 0, item, item, item) for item in (kl, kl * np.float32(1.1)))
    difference = kl_difference(one, other)
    assert difference.high < 0
    assert difference.high - difference.low < 0.2 * (summarize(one).kl_mean.high - summarize(one).kl_mean.low)


def conversations(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_chat_windows_hold_what_the_template_renders(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} counts: {{ m.content }}. {% endfor %}"
    turn = [{"role": "user", "content": "3 nets"}, {"role": "assistant", "content": "4 coins"}]
    path = conversations(tmp_path / "chat.jsonl", *[{"messages": turn}] * 4)
    windows = chat_windows(path, tokenizer, 12)
    text = "user counts: 3 nets. assistant counts: 4 coins. " * 4
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert windows.flatten().tolist() == ids[: windows.numel()]


def test_a_base_model_has_no_conversations(tmp_path: Path) -> None:
    path = conversations(tmp_path / "chat.jsonl", {"messages": [{"role": "user", "content": "3 nets"}]})
    with pytest.raises(InputError, match="no chat template"):
        chat_windows(path, make_tokenizer(), 12)


def test_all_bad_lines_are_named(tmp_path: Path) -> None:
    path = conversations(
        tmp_path / "chat.jsonl",
        {"messages": []},
        {"messages": [{"role": "me", "content": "x"}]},
        {"text": "x"},
        {"messages": [{"role": "user", "content": "fine"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "\ud83d"}]},
    )
    said = r"5 problems: line 1: no list.*line 2: role 'me'.*line 3.*line 5: a message.*line 6: holds half a character"
    with pytest.raises(InputError, match=said):
        read_conversations(path)
