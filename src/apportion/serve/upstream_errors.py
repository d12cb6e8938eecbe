"""What an upstream said or failed to say -> what the client is told. Pure functions; the key is in no message."""

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from apportion.serve.refusal import Refusal
from apportion.serve.routing import prompt_too_long

RETRIED_S = 5.0  # how often a server that was not there is tried again, when requests ask for it


def beginning(data: bytes, most: int, key: str) -> bytes:
    """What is shown of an upstream's bytes; the key is taken out first, since half of it would not be known again.

    >>> beginning(b"bad key sk-secret, sorry", 13, "sk-secret")
    b'bad key [key]'
    """
    return (data.replace(key.encode(), b"[key]") if key else data)[:most]


def object_of(status: int, data: bytes, key: str = "") -> dict[str, Any]:
    """The JSON object of an answer; an error that is none becomes one.

    Raises:
        Refusal: 502, a good status with what is no JSON object.

    >>> object_of(500, b"out of memory")
    {'error': {'message': 'out of memory'}}
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    if status == 200:
        said = beginning(data, 60, key)
        raise Refusal(502, f"upstream: answers what is no JSON object: {said!r}", code="bad_upstream_answer")
    return {"error": {"message": beginning(data, 300, key).decode("utf-8", "replace")}}


def fails(found: Mapping[str, Any]) -> bool:
    """Whether a JSON object is an error; `"error": null` beside an answer is none.

    >>> fails({"error": None, "choices": []}), fails({"error": "busy"}), fails({"object": "error", "message": "busy"})
    (False, True, True)
    """
    return bool(found.get("error")) or found.get("object") == "error"


def answer_of(found: dict[str, Any], key: str = "") -> dict[str, Any]:
    """A chat completion that holds an answer: choices, each with a message, whatever that says.

    Raises:
        Refusal: 502, it holds none, or is of a shape that no client reads.

    >>> answer_of({"choices": []})
    Traceback (most recent call last):
    apportion.serve.refusal.Refusal: upstream: answers without choices[0].message: '{"choices": []}'
    """
    choices = choices_of(found)
    if choices and all(isinstance(one.get("message"), dict) and one["message"] for one in choices):
        return found
    said = _shown(json.dumps(found), 80, key)
    raise Refusal(502, f"upstream: answers without choices[0].message: {said!r}", code="bad_upstream_answer")


def choices_of(found: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The choices of an answer or a chunk, none where it has none; None where they are not of OpenAI's shape.

    >>> choices_of({"choices": [{"index": 0, "delta": None}]}), choices_of({}), choices_of({"choices": 5})
    ([{'index': 0, 'delta': None}], [], None)
    """
    choices = found.get("choices")
    if choices is None:
        return []
    return choices if isinstance(choices, list) and all(_is_choice(one) for one in choices) else None


def _is_choice(one: object) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(one.get("index"), int | None)
        and isinstance(one.get("delta"), dict | None)
        and isinstance(one.get("message"), dict | None)
    )


def wait_of(said: str | None) -> float | None:
    """Seconds that a `Retry-After` header says, as a number or as a date; None without one that can be read.

    >>> wait_of("30"), wait_of("Wed, 21 Oct 2015 07:28:00 GMT"), wait_of("soon"), wait_of(None)
    (30.0, 0.0, None, None)
    """
    said = (said or "").strip()
    if said.isdecimal() and said.isascii():
        return float(said[:9])
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def refused(status: int, found: Mapping[str, Any], key: str, wait_s: float | None = None) -> Refusal:
    """What the client is told for an upstream's error: its words, never more, and never the key.

    The client's own faults keep their status; faults of the upstream, or of our key, are 502.

    Args:
        wait_s: when the upstream says that another attempt may help.

    >>> refused(401, {"error": {"message": "bad key sk-secret"}}, "sk-secret").message
    'upstream: answers HTTP 401: bad key [key]'
    >>> refused(200, {"error": {"message": "busy", "code": 429}}, "").status
    429
    >>> refused(422, {"detail": "Unexpected fields in the request"}, "").message
    'upstream: Unexpected fields in the request'
    """
    error = found if found.get("object") == "error" else found.get("error")
    error = error if isinstance(error, dict) else {"message": _shown(error or found.get("detail") or found, 300, key)}
    message = " ".join(_shown(error.get("message") or "gives no reason", 500, key).split())
    code = error.get("code")
    if status == 200:
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
    if prompt_too_long(status, message):
        return Refusal(400, f"upstream: {message}", code="context_length_exceeded", param="messages")
    if status in (401, 403) or 300 <= status < 400:
        return Refusal(502, f"upstream: answers HTTP {status}: {message}", code="upstream_refuses_us")
    told = status if 400 <= status < 500 else 502
    wait = wait_s if wait_s is not None else 1.0 if status in (429, 503) else None
    return Refusal(
        told, f"upstream: {message}", code=_shown(code, 100, key) if code else "upstream_error", retry_after_s=wait
    )


def _shown(value: object, most: int, key: str) -> str:
    """A value of an upstream's as a message has it; as in `beginning`, the key is taken out first."""
    text = str(value)
    return (text.replace(key, "[key]") if key else text)[:most]


def absent(trouble: str) -> Refusal:
    """A server that has not been reached yet, or not as the one that is expected."""
    return Refusal(503, f"upstream: {trouble}", code="upstream_unavailable", retry_after_s=RETRIED_S)


def unreachable(error: BaseException) -> Refusal:
    """A connection that could not be made or was lost before an answer."""
    if isinstance(error, TimeoutError):
        return Refusal(504, "upstream: did not answer in time", code="upstream_timeout")
    return Refusal(502, f"upstream: cannot be reached: {_plain(error)}", code="upstream_unavailable")


def broken(error: BaseException) -> Refusal:
    """A stream that was lost in the middle."""
    if isinstance(error, TimeoutError):
        return Refusal(504, "upstream: sent nothing for too long", code="upstream_timeout")
    return Refusal(502, f"upstream: broke off: {_plain(error)}", code="upstream_broke_off")


def _plain(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
