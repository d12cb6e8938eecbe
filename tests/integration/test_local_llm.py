"""A model in this process: the same results in any batch, the model's own probabilities, cut prompts."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apportion.core.errors import InputError, ModelStructureError
from apportion.models.identity import model_identity
from apportion.route.llm.generate import Row, generate
from apportion.route.llm.local import LocalLLM, _Prepared
from apportion.route.llm.protocol import Request
from tests.integration.tiny_model import make_tiny_model

QUESTIONS = ["What is the capital?", "one plus two", "Tokyo", "What " * 30, "seven and not three plus 1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> LocalLLM:
    return LocalLLM.open(str(folder), device="cpu", dtype="float32")


def requests(**settings: object) -> list[Request]:
    return [
        Request(text, max_tokens=8 + 3 * number, logprobs=True, **settings)  # type: ignore[arg-type]
        for number, text in enumerate(QUESTIONS)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_results_do_not_depend_on_the_batch(llm: LocalLLM, temperature: float) -> None:
    """False alarms: only if two tokens tie to within rounding (about 1e-6) at one of some 60 steps."""
    asked = requests(temperature=temperature, seed=3)
    together = llm.complete(asked)
    alone = [llm.complete([request])[0] for request in asked]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.finish, one.prompt_tokens, one.completion_tokens) == (
            other.text,
            other.finish,
            other.prompt_tokens,
            other.completion_tokens,
        )
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)
    assert llm.complete(asked[::-1])[::-1] != []
    assert [one.text for one in llm.complete(asked[::-1])[::-1]] == [one.text for one in together]


def test_greedy_tokens_are_those_of_generate(llm: LocalLLM, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    for request in requests():
        prompt = llm.render(request)
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=request.max_tokens,
            do_sample=False,
        )
        row = Row(prompt, request.max_tokens)
        generate(model, [row], end_ids=llm._end_ids, pad_id=0)
        assert row.tokens == theirs[0, len(prompt) :].tolist()


def test_logprobs_are_the_models_own(llm: LocalLLM, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [Row(llm.render(request), request.max_tokens, 1.0, 5) for request in requests()]
    generate(model, rows, end_ids=llm._end_ids, pad_id=0)
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.prompt + row.tokens])).logits[0].log_softmax(-1)
        places = range(len(row.prompt) - 1, len(row.prompt) + len(row.tokens) - 1)
        expected = [float(logits[place, token]) for place, token in zip(places, row.tokens, strict=True)]
        assert row.logprobs == pytest.approx(expected, abs=1e-4)


def test_rows_stop_at_the_end_token_and_leave_the_batch(llm: LocalLLM) -> None:
    first = Row(llm.render(Request("Tokyo")), 5)
    generate(llm._model, [first], end_ids=frozenset(), pad_id=0)
    ends = frozenset({first.tokens[2]})
    rows = [Row(llm.render(Request("Tokyo")), 5), Row(llm.render(Request("one plus")), 5)]
    generate(llm._model, rows, end_ids=ends, pad_id=0)
    assert rows[0].stopped
    assert rows[0].tokens == first.tokens[: first.tokens.index(first.tokens[2]) + 1]
    assert rows[0].latency_ms <= rows[1].latency_ms
    alone = Row(llm.render(Request("one plus")), 5)
    generate(llm._model, [alone], end_ids=ends, pad_id=0)
    assert rows[1].tokens == alone.tokens


def test_special_tokens_are_neither_text_nor_draft(llm: LocalLLM) -> None:
    for found in llm.complete(requests(temperature=2.0, seed=1)):
        assert found.token_logprobs is not None
        assert len(found.token_logprobs) <= found.completion_tokens
        assert "<|im_end|>" not in found.text
    assert llm.complete([Request("Tokyo", max_tokens=4)])[0].token_logprobs is None


def test_thinking_is_apart_also_when_it_never_ends(llm: LocalLLM) -> None:
    def read(opened: bool, text: str) -> tuple[str, str, int]:
        tokens = llm._tokenizer(text)["input_ids"]
        row = Row([1], len(tokens), tokens=tokens, logprobs=[-1.0] * len(tokens), margins=[0.5] * len(tokens))
        found = llm._completion(Request("x", logprobs=True), _Prepared(row, opened, 0))
        return found.thinking_text, found.text, len(found.token_logprobs or ())

    seven = len(llm._tokenizer("seven")["input_ids"])
    assert read(False, "<think>two</think>seven<|im_end|>") == ("two", "seven", seven)
    assert read(True, "two</think>seven") == ("two", "seven", seven)
    assert read(False, "<think>two plus") == ("two plus", "", 0)
    assert read(True, "two plus") == ("two plus", "", 0)
    assert read(False, "seven") == ("", "seven", seven)


def test_a_template_that_opens_the_thinking_is_noticed(folder: Path) -> None:
    fresh = LocalLLM.open(str(folder), device="cpu")
    closed = fresh._prepare(Request("one", max_tokens=5, thinking=False))
    fresh._tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    assert (closed.opened, fresh._prepare(Request("one", max_tokens=5)).opened) == (False, True)
    found = fresh.complete([Request("one", max_tokens=5)])[0]
    assert found.text == ""


def test_a_stop_sequence_ends_the_answer_but_not_the_thinking(llm: LocalLLM) -> None:
    whole = llm.complete([Request("What is the capital?", max_tokens=24)])[0].text
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    found = llm.complete([Request("What is the capital?", max_tokens=24, stop=("no such text", middle))])[0]
    assert found.text == whole[: whole.index(middle)].rstrip()
    assert found.completion_tokens < 24
    ends = llm._ends((middle,), opened=True)
    tokens = llm._tokenizer(f"{middle} so </think> x")["input_ids"]
    assert not ends(tokens[: tokens.index(llm._think_end)])
    assert ends([*tokens, *llm._tokenizer(middle)["input_ids"]])


def test_a_stop_sequence_may_end_with_the_blank_that_the_next_word_begins_with(
    llm: LocalLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama's tokenizer: a word holds the blank before it, and decoded alone it has lost it."""

    class Words:
        def decode(self, tokens: list[int]) -> str:
            return "".join(f" {('Answer:', 'four')[token]}" for token in tokens).removeprefix(" ")

    monkeypatch.setattr(llm, "_tokenizer", Words())
    monkeypatch.setattr(llm, "_pieces", {})
    ends = llm._ends(("Answer: ",), opened=False)
    assert [ends([0]), ends([0, 1])] == [False, True]


def test_examples_are_turns_before_the_question(llm: LocalLLM) -> None:
    text = llm._text(Request("What?", system="S", examples=(("one", "two"),)))
    assert text.index("user\none") < text.index("assistant\ntwo") < text.index("user\nWhat?")


def test_seeds_choose_the_sample(llm: LocalLLM) -> None:
    def sample(seed: int) -> str:
        return llm.complete([Request("one", max_tokens=12, temperature=2.0, seed=seed)])[0].text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(6)}) > 1


def test_the_thinking_switch_reaches_the_template(llm: LocalLLM) -> None:
    off, default = (llm.render(Request("one", thinking=value)) for value in (False, None))
    assert len(off) > len(default)
    assert llm.render(Request("one", thinking=True)) == default


def test_a_prompt_longer_than_the_context_is_cut_and_says_so(llm: LocalLLM) -> None:
    passages = "".join(f"[{n}] Bern is the capital.\n" for n in range(40))
    request = Request(f"Use:{passages}What?", max_tokens=16, expendable=(4, 4 + len(passages)))
    found = llm.complete([request])[0]
    whole = len(llm.render(request))
    assert found.prompt_tokens <= llm.context - 16
    assert found.prompt_tokens > llm.context - 16 - 20
    assert found.cut_prompt_tokens == whole - found.prompt_tokens
    question = "What " * 500
    found = llm.complete([Request(question, max_tokens=16)])[0]
    assert found.cut_prompt_tokens > 0
    assert llm.complete([Request("What?", max_tokens=16)])[0].cut_prompt_tokens == 0


@pytest.mark.parametrize(("times", "reads"), [(300, 1), (100_000, 0)])
@pytest.mark.parametrize("where", ["user", "system", "said"])
def test_a_prompt_that_may_not_be_cut_is_refused_before_it_is_decoded(
    llm: LocalLLM, monkeypatch: pytest.MonkeyPatch, where: str, times: int, reads: int
) -> None:
    """It is read once, or not at all where no tokenizer could make it short enough; others are answered beside it."""
    read, ids = list[str](), llm._ids
    monkeypatch.setattr(llm, "_ids", lambda text: read.append(text) or ids(text))
    long = replace(Request("Tokyo", max_tokens=8, whole=True, then="one"), **{where: "What " * times})  # type: ignore[arg-type]
    short = Request("Tokyo", max_tokens=8, whole=True, logprobs=True)
    refused, found = llm.complete([replace(long, stop=("x",), logprobs=True), short])
    assert len([text for text in read if "What What" in text]) == reads
    assert (refused.text, refused.completion_tokens, refused.prompt_tokens) == ("", 0, 0)
    assert refused.cut_prompt_tokens > llm.context - 8
    assert found == replace(llm.complete([replace(short, whole=False)])[0], latency_ms=found.latency_ms)
    assert found.cut_prompt_tokens == 0


def test_what_cannot_fit_is_an_error(llm: LocalLLM) -> None:
    with pytest.raises(InputError, match="since the context is 256"):
        llm.complete([Request("What?", max_tokens=256)])
    with pytest.raises(InputError, match="without its text"):
        llm.complete([Request("What?", system="Bern " * 300, max_tokens=16)])
    with pytest.raises(InputError, match="at least 1"):
        LocalLLM(llm._model, llm._tokenizer, identity="x", batch_size=0)


def test_templates_without_a_system_role_get_one_message(llm: LocalLLM, folder: Path) -> None:
    fresh = LocalLLM.open(str(folder), device="cpu")
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    fresh._tokenizer.chat_template = refuse + fresh._tokenizer.chat_template
    text = fresh._tokenizer.decode(fresh.render(Request("What?", system="Be brief.")))
    assert "Be brief.\n\nWhat?" in text
    fresh.has_chat_template = False
    assert fresh._tokenizer.decode(fresh.render(Request("What?", system="S"))) == "S\n\nWhat?\n"


def test_identity_is_of_the_content_not_the_place(tmp_path: Path, folder: Path, llm: LocalLLM) -> None:
    same, other = make_tiny_model(tmp_path / "a"), make_tiny_model(tmp_path / "b", seed=1)
    assert llm.model == model_identity(folder) == model_identity(same) != model_identity(other)


def test_models_that_are_not_there_or_no_language_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        LocalLLM.open(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises((InputError, ModelStructureError)):
        LocalLLM.open(str(tmp_path))


def test_logprobs_are_finite_and_not_positive(llm: LocalLLM) -> None:
    for found in llm.complete(requests()):
        assert all(math.isfinite(value) and value <= 0 for value in found.token_logprobs or ())
