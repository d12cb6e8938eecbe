"""Server-sent events of a chat completion: how one is written and read, and those of an answer of our own."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from apportion.serve.decision import Decided
from apportion.serve.refusal import encode

END = b"[DONE]"
DONE = b"data: " + END + b"\n\n"
KEEP_ALIVE = b": still deciding\n\n"
PIECE_CHARS = 24  # of a finished draft that is sent as if it came now


def finish_reason(finish: str) -> str:
    """An end of ours as clients of this interface know it.

    >>> finish_reason("filter"), finish_reason("length")
    ('content_filter', 'length')
    """
    return "content_filter" if finish == "filter" else finish


def event(value: object) -> bytes:
    """One event."""
    return b"data: " + encode(value) + b"\n\n"


def finished_answer(
    text: str, reasoning: str, finish: str, stamp: dict[str, Any], decided: Decided, used: dict[str, Any] | None
) -> Iterator[bytes]:
    """The events of an answer that is there already, such as a draft that is the answer.

    Args:
        stamp: id, created and model of the chunks. used: of the usage chunk; None sends none.
    """
    base = {**stamp, "object": "chat.completion.chunk"}

    def chunk(delta: dict[str, Any], ended: str | None = None) -> dict[str, Any]:
        return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": ended}]}

    yield event({**chunk({"role": "assistant", "content": ""}), "apportion": decided.public()})
    if reasoning:
        yield event(chunk({"reasoning_content": reasoning}))
    for at in range(0, len(text), PIECE_CHARS):
        yield event(chunk({"content": text[at : at + PIECE_CHARS]}))
    yield event(chunk({}, finish_reason(finish)))
    if used is not None:
        yield event({**base, "choices": [], "usage": used})
    yield DONE


async def as_events(reply: dict[str, Any]) -> AsyncIterator[bytes]:
    """A whole chat completion as the events of a stream, for whoever answers in one piece."""
    base = {**{name: reply.get(name) for name in ("id", "created", "model")}, "object": "chat.completion.chunk"}
    said, ends = [], []
    for one in reply.get("choices") or ():
        begun = {"index": one.get("index") or 0, "delta": _delta(one.get("message") or {})}
        measured = {"logprobs": one["logprobs"]} if one.get("logprobs") else {}
        said.append({**begun, **measured, "finish_reason": None})
        ends.append({**begun, "delta": {}, "finish_reason": one.get("finish_reason")})
    yield event({**base, "choices": said}) + event({**base, "choices": ends})
    if reply.get("usage"):
        yield event({**base, "choices": [], "usage": reply["usage"]})
    yield DONE


def _delta(message: dict[str, Any]) -> dict[str, Any]:
    """A whole message as a delta, in which calls of tools have numbers."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    numbered = [{"index": number, **call} for number, call in enumerate(calls) if isinstance(call, dict)]
    return {**message, "tool_calls": numbered}


def stamp(decided: Decided, model: str) -> dict[str, Any]:
    """Id, time and model of an answer that we write ourselves."""
    return {"id": f"chatcmpl-{decided.id[4:]}", "created": int(time.time()), "model": model}


def data_of(one: bytes) -> bytes:
    """The data of an event; nothing for comments.

    >>> data_of(b"event: error\\ndata: {}\\n\\n"), data_of(b": still deciding\\n\\n"), data_of(b"data: [DONE]\\n\\n")
    (b'{}', b'', b'[DONE]')
    """
    return b"".join(line[5:].strip() for line in one.splitlines() if line.startswith(b"data:"))


def object_in(data: bytes) -> dict[str, Any] | None:
    """The JSON object that an event's data is; None where it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
