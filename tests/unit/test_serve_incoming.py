"""A request on its way in."""

import asyncio

from starlette.requests import Request

from apportion.serve import Settings
from apportion.serve.incoming import read_body
from apportion.serve.serving import Serving


class Known(Serving):
    """Settings alone."""

    def __init__(self) -> None:
        self.settings = Settings()


def test_a_body_is_read_once_however_often_it_is_asked_for() -> None:
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    parts = [{"type": "http.request", "body": part, "more_body": part != b"rn"} for part in (b"Be", b"rn")]

    async def receive() -> dict[str, object]:
        return parts.pop(0)

    async def read() -> list[bytes]:
        return [await read_body(Request(scope, receive), Known()) for _ in range(3)]

    assert asyncio.run(read()) == [b"Bern"] * 3
    assert not parts
