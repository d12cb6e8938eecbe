"""A model in this process as a backend of `serve`: what it measures arrives, and no prompt is cut in silence."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from apportion.route.llm import Completion, Request
from apportion.route.llm.protocol import Echo
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
    read = read_completion(asked(Told(MEASURED))[0], 0.0, logprobs=True)
    assert read.token_logprobs == MEASURED.token_logprobs
    assert read.margin == pytest.approx(2.5)


def test_a_prompt_that_had_to_be_cut_is_refused_to_whoever_can_shorten_it_better() -> None:
    (found,) = asked(Told(replace(MEASURED, cut_prompt_tokens=3)))
    assert isinstance(found, Refusal)
    assert found.code == "context_length_exceeded"


def test_no_more_are_decoded_together_than_was_said() -> None:
    llm = Told(MEASURED)
    assert len(asked(llm, together=2, times=5)) == 5
    assert max(llm.calls) == 2
