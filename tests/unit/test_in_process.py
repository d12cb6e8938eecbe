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

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Who founded Bern?"}]}
MEASURED = Completion("Bern", 5, 2, 1.0, token_logprobs=(-0.25, -1.0), margin=2.5)


class Told(Echo):
    """A model that answers as it is told, and notes how many requests came together."""

    def __init__(self, answer: Completion) -> None:
        super().__init__(answer.text)
        self.answer, self.calls, self.batch_size = answer, list[int](), 64
        self.requests: list[Request] = []

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.calls.append(len(requests))
        self.requests += requests
        return [self.answer] * len(requests)


def asked(llm: Told, *, together: int = 16, times: int = 1, measured: bool = False, **options: Any) -> list[Any]:
    body = {**BODY, **options}

    async def run() -> list[Any]:
        backend = InProcess(llm, together=together)
        await backend.start()
        try:
            ask = (lambda: backend.measured(body, Request(""))) if measured else (lambda: backend.chat(body))
            return await asyncio.gather(*(ask() for _ in range(times)), return_exceptions=True)
        finally:
            await backend.close()

    return asyncio.run(run())


def test_what_was_measured_of_a_draft_is_read_back() -> None:
    llm = Told(MEASURED)
    for options in ({}, {"logprobs": True, "top_logprobs": 2, "temperature": 0}):
        assert asked(llm, measured=True, **options) == [MEASURED]
    assert all(one.logprobs for one in llm.requests)


def test_an_end_by_filter_is_called_as_clients_know_it() -> None:
    (found,) = asked(Told(replace(MEASURED, finish="filter")))
    assert found["choices"][0]["finish_reason"] == "content_filter"


def test_a_draft_ended_by_filter_too() -> None:
    decided = Decided("dec-1", 0.0, "auto", Controls(), "question", "direct", "router", "Who?")
    assert b'"content_filter"' in list(finished_answer("Bern", "", "filter", {}, decided, None))[-2]


def test_a_prompt_that_had_to_be_cut_is_refused_to_whoever_can_shorten_it_better() -> None:
    for measured in (False, True):
        llm = Told(replace(MEASURED, cut_prompt_tokens=3))
        (found,) = asked(llm, measured=measured)
        assert isinstance(found, Refusal)
        assert found.code == "context_length_exceeded"
        assert [one.whole for one in llm.requests] == [True], "it is refused before it is decoded"


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


def _sampled(**options: Any) -> list[int]:
    llm = Told(MEASURED)
    asked(llm, times=3, temperature=0.8, **options)
    return [one.seed for one in llm.requests]


def test_what_is_drawn_without_a_seed_is_drawn_anew_each_time() -> None:
    assert len(set(_sampled())) == 3
    assert len(set(_sampled(seed=None))) == 3
    assert _sampled(seed=0) == [0, 0, 0]
    assert _sampled(seed=-7) == [-7, -7, -7]


UNKNOWN: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}], "functions": [{"name": "f"}], "tool_choice": "required",
    "response_format": {"type": "json_object"}, "logit_bias": {"5": 100}, "audio": {"voice": "x"}, "n": 2,
    "grammar": "root ::= 'a'", "json_schema": {"type": "object"}, "structured_outputs": {"choice": ["a"]},
    "guided_choice": ["a"], "guided_json": {"type": "object"}, "guided_regex": "a+", "guided_grammar": "root",
    "top_p": 0.9, "top_k": 5, "min_p": 0.1, "typical_p": 0.5, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    "repetition_penalty": 1.2, "logprobs": True, "top_logprobs": 2, "best_of": 3, "min_tokens": 5, "ignore_eos": True,
    "reasoning_effort": "high", "what_nobody_knows": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("temperature", [None, 0.8])
def test_what_a_model_here_cannot_do_is_refused_by_name(name: str, temperature: float | None) -> None:
    llm = Told(MEASURED)
    (found,) = asked(llm, **{"temperature": temperature, name: UNKNOWN[name]})
    assert isinstance(found, Refusal)
    assert (found.status, found.param) == (400, name)
    assert found.message.startswith(f"{name}: a model in this process does not know it")
    assert not llm.calls


@pytest.mark.parametrize(
    "options",
    [
        dict.fromkeys(UNKNOWN),
        {"n": 1, "tools": [], "response_format": {"type": "text"}, "logprobs": False, "top_logprobs": 0},
        {"top_p": 1.0, "top_k": -1, "min_p": 0, "presence_penalty": 0.0, "repetition_penalty": 1, "temperature": 0.8},
        {"top_p": 0.9, "top_k": 5, "min_p": 0.1, "temperature": 0},
        {"user": "u", "metadata": {"a": "b"}, "tool_choice": "none", "parallel_tool_calls": True, "store": False},
    ],
)
def test_what_asks_for_nothing_is_taken(options: dict[str, Any]) -> None:
    (found,) = asked(Told(MEASURED), **options)
    assert found["choices"][0]["message"]["content"] == "Bern"
    assert not found["choices"][0].get("logprobs"), "nothing that looks like what was not asked for"


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("seed", {"seed": "abc"}),
        ("seed", {"seed": 1.5}),
        ("seed", {"seed": True}),
        ("seed", {"seed": 10**30}),
        ("chat_template_kwargs", {"chat_template_kwargs": 5}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"enable_thinking": "no"}}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"thinking_budget": 9}}),
        ("stop", {"stop": 5}),
        ("stop", {"stop": [5]}),
        ("messages", {"messages": [{"role": "user", "content": "Who \ud800?"}]}),
        ("messages", {"messages": [{"role": "system", "content": "\udfff"}, *BODY["messages"]]}),
    ],
)
@pytest.mark.parametrize("measured", [False, True])
def test_what_cannot_be_read_is_the_clients_fault(param: str, options: dict[str, Any], measured: bool) -> None:
    (found,) = asked(Told(MEASURED), measured=measured, **options)
    assert isinstance(found, Refusal)
    assert (found.status, found.param) == (400, param)


def test_stops_that_end_nothing_are_left_out() -> None:
    llm = Told(MEASURED)
    asked(llm, stop=["", "END"])
    asked(llm, stop="END")
    assert [one.stop for one in llm.requests] == [("END",), ("END",)]
