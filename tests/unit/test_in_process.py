"""A model in this process as a backend of `serve`: what it measures arrives, and no prompt is cut in silence."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from apportion.core.errors import InputError
from apportion.route.llm import Completion, Request
from apportion.route.llm.cut import fit
from apportion.route.llm.protocol import Echo
from apportion.serve.controls import Controls
from apportion.serve.decision import Decided
from apportion.serve.events import finished_answer
from apportion.serve.in_process import InProcess
from apportion.serve.refusal import Refusal
from apportion.serve.routing import read_completion

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Who founded Bern?"}], "logprobs": True}
MEASURED = Completion("Bern", 5, 2, 1.0, token_logprobs=(-0.25, -1.0), margin=2.5)


class Told(Echo):
    """A model that answers as it is told, and notes how many requests came together."""

    def __init__(self, answer: Completion) -> None:
        super().__init__(answer.text)
        self.answer, self.calls, self.batch_size = answer, list[int](), 64

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.calls.append(len(requests))
        return [self.answer] * len(requests)


def asked(llm: Told, *, together: int = 16, times: int = 1) -> list[Any]:
    async def run() -> list[Any]:
        backend = InProcess(llm, together=together)
        await backend.start()
        try:
            return await asyncio.gather(*(backend.chat(BODY) for _ in range(times)), return_exceptions=True)
        finally:
            await backend.close()

    return asyncio.run(run())


def test_what_was_measured_of_a_draft_is_read_back() -> None:
    read = read_completion(asked(Told(MEASURED))[0], 0.0, Request("", logprobs=True))
    assert read.token_logprobs == MEASURED.token_logprobs
    assert read.margin == pytest.approx(2.5)


def test_an_end_by_filter_is_called_as_clients_know_it() -> None:
    (found,) = asked(Told(replace(MEASURED, finish="filter")))
    assert found["choices"][0]["finish_reason"] == "content_filter"


def test_a_draft_ended_by_filter_too() -> None:
    decided = Decided("dec-1", 0.0, "auto", Controls(), "question", "direct", "router", "Who?")
    assert b'"content_filter"' in list(finished_answer("Bern", "", "filter", {}, decided, None))[-2]


def test_a_prompt_that_had_to_be_cut_is_refused_to_whoever_can_shorten_it_better() -> None:
    (found,) = asked(Told(replace(MEASURED, cut_prompt_tokens=3)))
    assert isinstance(found, Refusal)
    assert found.code == "context_length_exceeded"


class Refusing(Told):
    """A model that refuses every request for this reason."""

    def __init__(self, error: InputError) -> None:
        super().__init__(MEASURED)
        self.error = error

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        raise self.error


def _too_long() -> InputError:
    with pytest.raises(InputError) as error:
        fit(Request("text"), lambda request: 100, 10)
    return error.value


def test_only_a_prompt_that_is_too_long_is_called_so() -> None:
    max_tokens = InputError("max_tokens 9000: expected 1 to 2047, since the context is 2048 tokens")
    for error, code in ((_too_long(), "context_length_exceeded"), (max_tokens, None)):
        (found,) = asked(Refusing(error))
        assert isinstance(found, Refusal)
        assert (found.status, found.code) == (400, code)
        assert found.message == error.problem


def test_no_more_are_decoded_together_than_was_said() -> None:
    llm = Told(MEASURED)
    assert len(asked(llm, together=2, times=5)) == 5
    assert max(llm.calls) == 2
