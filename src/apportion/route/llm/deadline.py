"""A limit on one call in all: a server that sends a byte a second never runs into a timeout between two bytes."""

import importlib
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


def http_client(base_url: str, limit_s: float) -> Any:
    """The HTTP client of the openai package: no redirects, no proxy to this machine itself, a limit in all.

    Args:
        limit_s: from sending a request to the last byte of its answer.
    """
    import openai

    http = _http_module(openai.DefaultHttpxClient)
    host = urlsplit(base_url).hostname or ""

    def begin(request: Any) -> None:
        request.extensions["apportion_ends"] = time.monotonic() + limit_s

    def limit(response: Any) -> None:
        response.stream = limited(http, response.stream, response.request)

    return openai.DefaultHttpxClient(
        follow_redirects=False,
        trust_env=host not in LOOPBACK,
        event_hooks={"request": [begin], "response": [limit]},
    )


def limited(http: ModuleType, stream: Any, request: Any) -> Any:
    """The stream, which raises the client's own timeout once the request's end has come."""

    class Limited(http.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            for chunk in stream:
                if time.monotonic() > request.extensions["apportion_ends"]:
                    raise http.ReadTimeout("the whole answer took too long", request=request)
                yield chunk

        def close(self) -> None:
            stream.close()

    return Limited()


def _http_module(client: type) -> ModuleType:
    """httpx, or httpx2 for openai 3."""
    return importlib.import_module(next(base for base in client.__mro__ if base is not client).__module__.split(".")[0])
