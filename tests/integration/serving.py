"""Our server on a socket before a stub, and what tests ask of it."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai

from apportion.serve import Address, Routing, Settings, Timeouts, Upstream, create_app
from tests.integration.upstream_stub import Stub, served

QUESTION = [{"role": "user", "content": "Who founded Bern?"}]
ASKED: dict[str, Any] = {"model": "auto", "messages": QUESTION}
KEY = "a-key-of-this-test-000"


@contextmanager
def serving(stub: Stub, known: Routing, **settings: Any) -> Iterator[openai.OpenAI]:
    settings = {"timeouts": Timeouts(search_s=60.0), **settings}  # on a busy machine as on a free one
    app = create_app(known, Upstream(Address(stub.url, idle_s=60.0)), Settings(**settings))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        client.state = app.state.serving  # type: ignore[attr-defined]
        yield client


def get(client: openai.OpenAI, path: str, key: str = KEY) -> tuple[int, Any]:
    return _sent(client, path, key, None)


def post(client: openai.OpenAI, path: str, body: Any) -> tuple[int, Any]:
    """A body of any JSON, lone surrogates included, which clients refuse to send."""
    return _sent(client, path, KEY, json.dumps(body).encode())


def _sent(client: openai.OpenAI, path: str, key: str, body: bytes | None) -> tuple[int, Any]:
    url = str(client.base_url).removesuffix("/v1/") + path
    asked = urllib.request.Request(url, body, headers={"authorization": f"Bearer {key}"})
    try:
        answer = urllib.request.urlopen(asked, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        status, text = answer.status, answer.read().decode()
    return status, json.loads(text) if text.startswith("{") else text


def logged(client: openai.OpenAI, count: int = 1) -> list[dict[str, Any]]:
    """The decisions logged, the newest first, once there are so many: a stream is noted after its last event."""
    log = client.state.log  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while len(found := log.recent(count)) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(found) == count, found
    return list(found)
