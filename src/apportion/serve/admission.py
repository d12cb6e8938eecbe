"""How many requests are in work, how many may wait, and what the others are told. ASGI around the application.

A body is read before a place is taken, so that a client that sends slowly keeps nobody else from answering, and a
client that leaves while it waits gives its place in the queue up.
"""

import asyncio
import time
from collections import deque

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apportion.serve.incoming import CLOSED, read_body, until_gone
from apportion.serve.refusal import Refusal
from apportion.serve.serving import Serving

GUARDED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
REMEMBERED = 32


class Admission:
    """Bounded concurrency with a bounded queue: what neither runs nor waits gets 429 and when to come back.

    As many bodies may be on their way in as requests may run and wait, so what is held of them is bounded.

    Args:
        serving: its settings say how many answers may be in work at once (streams until their last event) and how
            many requests may wait.
    """

    def __init__(self, app: ASGIApp, *, serving: Serving) -> None:
        settings = serving.settings
        self._app, self._serving, self._metrics = app, serving, serving.metrics
        self._concurrency, self._queue = settings.concurrency, settings.queue
        self._places = asyncio.Semaphore(settings.concurrency)
        self._waiting = self._arriving = 0
        self._took: deque[float] = deque([1.0], maxlen=REMEMBERED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GUARDED or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        request = Request(scope, receive)
        try:
            body = await self._arrived(request)
            await self._place(request)
        except Refusal as refusal:
            return await refusal.response()(scope, receive, send)
        except ClientDisconnect:
            return await Response(status_code=CLOSED)(scope, receive, send)
        started = time.perf_counter()
        self._metrics.running.inc()
        try:
            return await self._app(scope, _again(body, receive), send)
        finally:
            self._metrics.running.dec()
            self._took.append(time.perf_counter() - started)
            self._places.release()

    async def _arrived(self, request: Request) -> bytes:
        """The body; refused unread where there would be no place for it."""
        full = self._places.locked() and self._waiting >= self._queue
        if full or self._arriving >= self._concurrency + self._queue:
            raise self._full()
        self._arriving += 1
        try:
            return await read_body(request, self._serving)
        finally:
            self._arriving -= 1

    async def _place(self, request: Request) -> None:
        """Take a place, or wait for one as long as the client does."""
        if not self._places.locked():
            await self._places.acquire()
            return
        if self._waiting >= self._queue:
            raise self._full()
        self._waiting += 1
        self._metrics.waiting.inc()
        try:
            await until_gone(request, self._places.acquire())
        finally:
            self._waiting -= 1
            self._metrics.waiting.dec()

    def _full(self) -> Refusal:
        """When a place is likely to be free: what waits, at the pace of the last answers."""
        self._metrics.refused.inc()
        pace = sum(self._took) / len(self._took) / self._concurrency
        wait_s = min(60.0, max(1.0, pace * (self._waiting + 1)))
        return Refusal(429, "server: all places are taken and the queue is full; try again later",
                       code="queue_full", retry_after_s=wait_s)  # fmt: skip


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that has been read, then whatever comes after it."""
    kept: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return kept.pop() if kept else await receive()

    return received
