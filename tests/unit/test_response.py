"""Bodies of servers -> completions; what is no completion is an error."""

from typing import Any

import pytest

from apportion.route.llm.call import BadAnswerError
from apportion.route.llm.protocol import Request
from apportion.route.llm.response import read_body, visible_span
from apportion.serve.decision import counted

ASKED = Request("Who are you?", logprobs=True)


def body(content: object, logprobs: object = None, **extra: Any) -> dict[str, Any]:
    choice = {"message": {"content": content, **extra}, "logprobs": logprobs, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def tokens(*pairs: tuple[str, float]) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": value} for token, value in pairs]}


def test_a_plain_completion() -> None:
    found = read_body(body("Hi", tokens(("H", -0.5), ("i", -0.1))), ASKED, 7.0)
    assert (found.text, found.prompt_tokens, found.completion_tokens) == ("Hi", 3, 2)
    assert found.token_logprobs == (-0.5, -0.1)
    assert (found.latency_ms, found.finish, found.tokens_measured) == (7.0, "stop", True)


@pytest.mark.parametrize(
    ("prompt", "cached", "kept"),
    [(3, 0, 0), (3, 3, 3), (3, 4, None), (3, 10**30, None), (3, -1, None), (3, True, None), (None, 2, None)],
)
def test_no_more_tokens_were_cached_than_the_prompt_has(prompt: Any, cached: Any, kept: int | None) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": cached}}
    assert read_body({**body("Hi"), "usage": usage}, ASKED, 0).cached_tokens == kept
    spent = counted(usage)
    assert (spent.cached_tokens if spent else None) == (None if prompt is None else kept or 0)


def test_only_visible_tokens_count() -> None:
    listed = tokens(("<think>", -1.0), ("hm", -1.0), ("</think>", -1.0), ("\n\n", -1.0), ("Hi", -0.5), ("<end>", 0))
    assert read_body(body("<think>hm</think>\n\nHi", listed), ASKED, 0).token_logprobs == (-0.5,)
    found = read_body(body("Hi", listed, reasoning_content="hm"), ASKED, 0)
    assert (found.token_logprobs, found.thinking_text) == ((-0.5,), "hm")
    assert visible_span(["a"], "zzz") == (0, 1)


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{"token": "x"}]}, "x", [1]]
)
def test_logprobs_that_are_left_out_are_none(logprobs: object) -> None:
    assert read_body(body("Hi", logprobs), ASKED, 0).token_logprobs is None


def test_extreme_logprobs_are_bounded_and_nan_is_none() -> None:
    assert read_body(body("Hi", tokens(("Hi", float("-inf")))), ASKED, 0).token_logprobs == (-100.0,)
    assert read_body(body("Hi", tokens(("Hi", -(10**400)))), ASKED, 0).token_logprobs == (-100.0,)
    assert read_body(body("Hi", tokens(("Hi", float("nan")))), ASKED, 0).token_logprobs is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": {}}]},
        {"choices": [{"message": None}]},
        body(5),
    ],
)
def test_what_is_no_completion_is_refused(value: object) -> None:
    with pytest.raises(BadAnswerError, match=r"without choices\[0\]"):
        read_body(value, ASKED, 0)


def test_missing_usage_is_estimated_and_said() -> None:
    found = read_body({"choices": [{"message": {"content": "12345"}}]}, ASKED, 0)
    assert (found.prompt_tokens, found.completion_tokens, found.tokens_measured) == (3, 2, False)


def test_half_characters_become_question_marks() -> None:
    assert read_body(body("a\ud800b"), ASKED, 0).text == "a?b"


def test_a_server_that_only_thought_has_no_text() -> None:
    found = read_body(body(None, reasoning="hm"), ASKED, 0)
    assert (found.text, found.thinking_text) == ("", "hm")
