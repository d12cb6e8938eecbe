"""A server's chat completion -> Completion; whatever is no completion is an error, never a guess."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apportion.route.llm.call import BadAnswerError
from apportion.route.llm.protocol import Completion, Request, split_thinking

MAX_BODY_CHARS = 16 << 20
CHARS_PER_TOKEN = 4


def parse_completion(send: Callable[[], Any], request: Request) -> Completion:
    """Send, time and read one chat completion.

    The body is read as JSON here rather than by the client, which lets many malformed answers through.

    Raises:
        BadAnswerError: not JSON, or JSON without a message.
    """
    start = time.perf_counter()
    text = send().http_response.text
    latency_ms = (time.perf_counter() - start) * 1000
    if len(text) > MAX_BODY_CHARS:
        raise BadAnswerError(f"answers {len(text)} characters, at most {MAX_BODY_CHARS} are read")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswerError(f"answers what is not JSON: {text[:80]!r}") from error
    return read_body(body, request, latency_ms)


def read_body(body: object, request: Request, latency_ms: float) -> Completion:
    """A completion from a decoded body."""
    choice = _first(_get(body, "choices"))
    message = _get(choice, "message")
    content = _get(message, "content")
    reasoning = _get(message, "reasoning_content") or _get(message, "reasoning") or ""
    if not isinstance(content, str) and not (content is None and isinstance(message, Mapping) and reasoning):
        raise BadAnswerError(f"answers JSON without choices[0].message.content: {str(body)[:80]!r}")
    content = whole_characters(content or "")
    thought, visible = split_thinking(content)
    prompt, completion = (_count(body, key) for key in ("prompt_tokens", "completion_tokens"))
    measured = prompt is not None and completion is not None
    return Completion(
        text=visible,
        prompt_tokens=_guess(request.system + request.user) if prompt is None else prompt,
        completion_tokens=_guess(content + str(reasoning)) if completion is None else completion,
        latency_ms=latency_ms,
        token_logprobs=_logprobs(choice, visible) if request.logprobs else None,
        finish="length" if _get(choice, "finish_reason") == "length" else "stop",
        thinking_text=whole_characters(str(reasoning)) or thought,
        tokens_measured=measured,
    )


def _logprobs(choice: object, visible: str) -> tuple[float, ...] | None:
    """Log-probabilities of the tokens that make up the visible text; None when the server sent none."""
    content = _get(_get(choice, "logprobs"), "content")
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        return None
    tokens = [str(_get(item, "token") or "") for item in content]
    values = [_get(item, "logprob") for item in content]
    if not all(isinstance(value, int | float) and value == value for value in values):
        return None
    start, end = visible_span(tokens, visible)
    return tuple(bounded_logprob(value) for value in values[start:end])


def visible_span(tokens: Sequence[str], visible: str) -> tuple[int, int]:
    """The tokens [start, end) that overlap the visible text; all of them where it cannot be found.

    Thinking before it and end marks after it are left out.

    >>> visible_span(["<think>", "</think>", "\\n", "Paris", ".", "<|im_end|>"], "Paris.")
    (3, 5)
    """
    at = "".join(tokens).rfind(visible)
    if at < 0 or not visible:
        return 0, len(tokens)
    start = end = position = 0
    for number, token in enumerate(tokens):
        if position + len(token) <= at:
            start = number + 1
        if position < at + len(visible):
            end = number + 1
        position += len(token)
    return start, end


def bounded_logprob(value: float) -> float:
    """A log-probability in [-100, 0]: some servers send -inf or -9999 for what they rounded to zero."""
    return min(0.0, max(-100.0, float(value)))


def whole_characters(text: str) -> str:
    """Text without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def _count(body: object, key: str) -> int | None:
    value = _get(_get(body, "usage"), key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _guess(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)
