"""A server's chat completion -> Completion; whatever is no completion is an error, never a guess."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apportion.route.llm.call import BadAnswerError, ErrorBodyError
from apportion.route.llm.protocol import THINK_END, Completion, Finish, Request, before_stop, split_thinking

MAX_BODY_CHARS = 16 << 20
CHARS_PER_TOKEN = 4
MOST_TOKENS = 1 << 53  # beyond, JSON's readers and a log's integers no longer hold a count


def parse_completion(send: Callable[[], Any], request: Request, *, opened: bool = False) -> Completion:
    """Send, time and read one chat completion.

    The body is read as JSON here rather than by the client, which lets many malformed answers through.

    Args:
        opened: the server's template is known to begin answers inside a thinking block.

    Raises:
        BadAnswerError: not JSON, or JSON without a message. ErrorBodyError: an error, in spite of status 200.
    """
    start = time.perf_counter()
    text = send().http_response.text
    latency_ms = (time.perf_counter() - start) * 1000
    return read_body(decoded(text), request, latency_ms, opened=opened)


def decoded(text: str) -> object:
    """A body as JSON.

    Raises:
        BadAnswerError: it is none, or too long.
    """
    if len(text) > MAX_BODY_CHARS:
        raise BadAnswerError(f"answers {len(text)} characters, at most {MAX_BODY_CHARS} are read")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswerError(f"answers what is not JSON: {text[:80]!r}") from error


def read_body(body: object, request: Request, latency_ms: float, *, opened: bool = False) -> Completion:
    """A completion from a decoded body."""
    _refuse_error(body)
    choice = _first(_get(body, "choices"))
    message = _get(choice, "message")
    finish = _finish(choice)
    content, parts_thought = _content(message)
    reasoning = _get(message, "reasoning_content") or _get(message, "reasoning") or parts_thought
    if content is None and not (isinstance(message, Mapping) and (reasoning or finish != "stop")):
        raise _no_content(body, choice, message)
    content = whole_characters(content or "")
    thought, visible = split_thinking(content, opened=opened and THINK_END not in content and finish == "length")
    prompt, completion, cached = counts(_get(body, "usage"))
    listed = _get(_get(choice, "logprobs"), "content")
    logprobs, margin = _logprobs(listed, visible) if request.logprobs else (None, None)
    return Completion(
        text=before_stop(visible, request.stop),
        prompt_tokens=_guess(request) if prompt is None else prompt,
        completion_tokens=_tokens(content + str(reasoning)) if completion is None else completion,
        latency_ms=latency_ms,
        token_logprobs=logprobs,
        finish=finish,
        thinking_text=whole_characters(str(reasoning)) or thought,
        tokens_measured=prompt is not None and completion is not None,
        cached_tokens=cached,
        margin=margin,
        raw_text=content,
    )


def _refuse_error(body: object) -> None:
    """An error in the body of a 200, as routers in front of other servers send it."""
    error = _get(body, "error")
    if not error or _get(body, "choices"):
        return
    code = _get(error, "code")
    said = str(_get(error, "message") or error)
    raise ErrorBodyError(code if isinstance(code, int) and 300 <= code < 600 else 500, said)


def _finish(choice: object) -> Finish:
    reason = _get(choice, "finish_reason")
    return "length" if reason == "length" else "filter" if reason == "content_filter" else "stop"


def _content(message: object) -> tuple[str | None, str]:
    """(visible content, thinking) where content may be a text or a list of parts; None where there is none."""
    content = _get(message, "content")
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        return None, ""
    texts = [_get(part, "text") for part in content if _get(part, "type") in ("text", "output_text")]
    thoughts = [_thought(part) for part in content if _get(part, "type") in ("thinking", "reasoning")]
    return "".join(text for text in texts if isinstance(text, str)), "".join(thoughts)


def _thought(part: object) -> str:
    held = _get(part, "thinking") or _get(part, "text") or ""
    return "".join(str(_get(one, "text") or "") for one in held) if isinstance(held, list) else str(held)


def _no_content(body: object, choice: object, message: object) -> BadAnswerError:
    if _get(message, "tool_calls"):
        return BadAnswerError("answers with a tool call and no text", "turn tools off for this model on the server")
    if isinstance(message, Mapping) and "content" in message and message["content"] is None:
        reason = _get(choice, "finish_reason")
        return BadAnswerError(
            f"answers without text (content null, finish_reason {reason!r})",
            "see the server's own log; raise max_tokens in the prompts file if all of it went into thinking",
        )
    return BadAnswerError(f"answers JSON without choices[0].message.content: {str(body)[:80]!r}")


def _logprobs(content: object, visible: str) -> tuple[tuple[float, ...] | None, float | None]:
    """Log-probabilities of the tokens that make up the visible text, and the margin of the first; None without them."""
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        return None, None
    tokens = [str(_get(item, "token") or "") for item in content]
    values = [_get(item, "logprob") for item in content]
    if not all(isinstance(value, int | float) and value == value for value in values):
        return None, None
    start, end = visible_span(tokens, visible)
    found = tuple(bounded_logprob(value) for value in values[start:end])
    return found, _margin(content[start]) if found else None


def _margin(item: object) -> float | None:
    """Log-probability of the likeliest token minus that of the second; None where alternatives were not sent."""
    listed = _get(item, "top_logprobs")
    values = [_get(one, "logprob") for one in listed] if isinstance(listed, list) else []
    best = sorted((bounded_logprob(value) for value in values if isinstance(value, int | float)), reverse=True)
    return best[0] - best[1] if len(best) > 1 else None


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
    return float(min(0.0, max(-100.0, value)))  # bounded first: a whole number may be too large for a float


def whole_characters(text: str) -> str:
    """Text without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def counts(usage: object) -> tuple[int | None, int | None, int | None]:
    """Tokens of the prompt, of the completion, and of the prompt those computed before, as a server's usage object has
    them; None for each that cannot be.

    >>> counts({"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}})
    (12, 3, 8)
    >>> counts({"prompt_tokens": 12, "completion_tokens": -5, "prompt_tokens_details": {"cached_tokens": 13}})
    (12, None, None)
    """
    prompt, completion = (_whole(_get(usage, name)) for name in ("prompt_tokens", "completion_tokens"))
    cached = _whole(_get(_get(usage, "prompt_tokens_details"), "cached_tokens"))
    possible = prompt is not None and cached is not None and cached <= prompt
    return prompt, completion, cached if possible else None


def _whole(value: object) -> int | None:
    """A number of tokens; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


def _guess(request: Request) -> int:
    return _tokens(request.system + "".join(text for _, text in request.turns))


def _tokens(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)
