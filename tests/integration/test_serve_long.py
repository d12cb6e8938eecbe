"""Texts as long as bodies may be: what is expensive is given a bounded part of them, and what was left out is said."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from apportion.route.ask import kinds, probes
from apportion.serve import Routing, conversation
from apportion.serve import routing as measured
from apportion.serve.asking import Limits, ask
from apportion.serve.chat_request import ChatRequest
from apportion.serve.conversation import read_conversation
from apportion.serve.routing import MAX_QUESTION_CHARS, Request
from tests.integration.serving import post, serving
from tests.integration.upstream_stub import Stub

LONG = 4 * MAX_QUESTION_CHARS


class _Measured:
    """A function or a pattern that notes the longest text that it was given."""

    def __init__(self, inner: Any, longest: list[int]) -> None:
        self._inner, self._longest = inner, longest

    def _noted(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        self._longest.append(max((len(one) for one in given if isinstance(one, str)), default=0))
        return given

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._inner(*self._noted(given), **named)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return (lambda *given: found(*self._noted(given))) if callable(found) else found


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The lengths of all texts that were looked at word by word."""
    found: list[int] = []
    for module, names in (
        (measured, ("question_features", "features_of_hits", "answer_features")),
        (conversation, ("_WORD", "_LEANS")),
        (kinds, ("_SENTENCE", "_YES_NO", "_AMOUNT", "_QUANTITY")),
        (probes, ("kind_features", "hashed_words", "passage_features")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, _Measured(getattr(module, name), found))
    yield found
    assert found, "nothing was measured"
    assert max(found) <= MAX_QUESTION_CHARS


@pytest.mark.parametrize("word", ["W ", "? ", "who is word ", "if 3. ", "Wer, ", "thanks "])
@pytest.mark.parametrize("model", ["auto", "rag", "cot"])
def test_a_long_question_is_judged_by_its_end_and_asked_whole(
    stub: Stub, known: Routing, longest: list[int], word: str, model: str
) -> None:
    text = word * (LONG // len(word)) + "Who founded Bern?"
    with serving(stub, known) as client:
        status, found = post(client, "/v1/chat/completions", {"model": model, "messages": [_said(text)]})
    assert status == 200
    assert all(text in str(body["messages"]) for body in stub.bodies), "the model is asked the whole question"
    told = [one for one in found["apportion"]["weaker"] if f"last {MAX_QUESTION_CHARS} of" in one]
    assert len(told) == (model != "cot"), "said once, where something was judged by it"


def test_long_conversations_are_looked_back_on_a_little(longest: list[int]) -> None:
    turns = [
        _said("hi"),
        _said("Who founded Bern? " * 9000),
        *[_said("thanks")] * 50,
        _said("W " * LONG),
        _said("And it?"),
    ]
    asked = read_conversation(turns)
    assert asked.kind == "follow-up"
    assert len(asked.judged) < 1000
    before = len(longest)
    assert read_conversation([*turns[:2], *[_said("thanks")] * 5000, _said("And it?")]).kind == "question"
    assert len(longest) - before < 300, "not every turn of a long conversation is read"


def test_many_system_messages_are_joined_in_linear_time() -> None:
    def took_s(count: int) -> float:
        messages = ({"role": "system", "content": "Be brief."},) * count + (_said("Who founded Bern?"),)
        chat = ChatRequest("cot", messages, False, False, None, {}, {})
        begun = time.thread_time()
        asking = ask(chat, Request("Who founded Bern?", "Be kind."), Limits())
        took = time.thread_time() - begun
        assert asking.system == "\n\n".join(["Be brief."] * count + ["Be kind."])
        assert asking.history == ()
        return took

    least = [min(took_s(count) for _ in range(3)) for count in (50_000, 200_000)]
    assert least[1] < 10 * least[0], "four times as many take some four times as long, in quadratic time sixteen"


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
