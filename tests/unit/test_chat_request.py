"""Conversations that may be answered, and those that may not: no body of a client's is a fault of ours."""

import json
from typing import Any

import pytest

from apportion.serve.chat_request import parse_chat
from apportion.serve.refusal import Refusal

USER = {"role": "user", "content": "Who founded Bern?"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _parsed(*messages: Any) -> int:
    """How many messages were taken."""
    return len(parse_chat(json.dumps({"model": "auto", "messages": [USER, *messages, USER]}).encode()).messages)


@pytest.mark.parametrize(
    "said",
    [
        {"tool_calls": [CALL]},
        {"function_call": {"name": "f", "arguments": "{}"}},
        {"reasoning_content": "Let me see."},
        {"reasoning": "Let me see."},
        {"refusal": "No."},
        {"audio": {"id": "audio-1"}},
    ],
)
def test_an_assistant_that_said_no_text_may_be_sent_back(said: dict[str, Any]) -> None:
    assert _parsed({"role": "assistant", "content": None, **said}) == 3
    assert _parsed({"role": "assistant", **said}) == 3
    with pytest.raises(Refusal, match="content"):
        _parsed({"role": "user", "content": None, **said})


@pytest.mark.parametrize("said", [{}, {"tool_calls": []}, {"reasoning_content": ""}, {"function_call": None}])
def test_an_assistant_that_said_nothing_may_not(said: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=r"messages\[1\].content: is missing"):
        _parsed({"role": "assistant", "content": None, **said})


@pytest.mark.parametrize("strange", [{}, [1], {"a": []}])
def test_an_id_that_is_no_text_is_refused_by_name(strange: Any) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": strange}]}
    with pytest.raises(Refusal, match=r"messages\[1\].tool_calls\[0\].id: is") as error:
        _parsed(calls)
    assert error.value.status == 400
    with pytest.raises(Refusal, match=r"messages\[2\].tool_call_id: is") as error:
        _parsed({**calls, "tool_calls": [CALL]}, {"role": "tool", "content": "1191", "tool_call_id": strange})
    assert error.value.status == 400


def test_a_call_is_answered_after_it_was_made() -> None:
    calls, answers = {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x", "tool_call_id": "a"}
    assert _parsed(calls, answers) == 4
    with pytest.raises(Refusal, match="which no message before it makes"):
        _parsed(answers, calls)
