"""An upstream's stream on its way to a client: what went wrong in it reaches the client in OpenAI's shape."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from apportion.serve.controls import Controls
from apportion.serve.decision import Decided, Outcome
from apportion.serve.relay import Relay

DECIDED = Decided("dec-1", 0.0, "auto", Controls(), "question", "direct", "router", "Who?")


def passed(*blocks: bytes) -> tuple[bytes, Outcome]:
    outcome = Outcome()
    relay = Relay(DECIDED, outcome, include_usage=False, elapsed_ms=lambda: 1.0)

    async def source() -> AsyncIterator[bytes]:
        for block in blocks:
            yield block

    async def run() -> bytes:
        return b"".join([block async for block in relay.events(source())])

    return asyncio.run(run()), outcome


@pytest.mark.parametrize("error", ["CUDA out of memory", {"message": "CUDA out of memory", "code": 500}])
def test_an_error_in_a_stream_has_openais_shape_whatever_its_own_was(error: Any) -> None:
    said, outcome = passed(b'data: {"choices": []}\n\n', b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    last = json.loads(said.strip().split(b"\n\n")[-1].removeprefix(b"data: "))
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["message"] == "upstream: CUDA out of memory"
    assert (outcome.status, outcome.error) == ("error", "upstream: CUDA out of memory")
