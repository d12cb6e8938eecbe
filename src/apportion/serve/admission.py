"""How many requests are in work, how many may wait, and what the others are told. ASGI around the application."""

import asyncio
import time
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

from apportion.serve.metrics import Metrics
from apportion.serve.refusal import Refusal

GUARDED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
REMEMBERED = 32


class Admission:
    """Bounded concurrency with a bounded queue: what neither runs nor waits gets 429 and when to come back.

    Args:
        concurrency: answers in work at once, streams until their last event. queue: that may wait.
    """

    def __init__(self, app: ASGIApp, *, concurrency: int, queue: int, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._places, self._queue = asyncio.Semaphore(concurrency), queue
        self._waiting = 0
        self._took: deque[float] = deque([1.0], maxlen=REMEMBERED)
        self._concurrency = concurrency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GUARDED or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if self._places.locked():
            if self._waiting >= self._queue:
                self._metrics.refused.inc()
                return await self._full().response()(scope, receive, send)
            self._waiting += 1
            self._metrics.waiting.inc()
            try:
                await self._places.acquire()
            finally:
                self._waiting -= 1
                self._metrics.waiting.dec()
        else:
            await self._places.acquire()
        started = time.perf_counter()
        self._metrics.running.inc()
        try:
            return await self._app(scope, receive, send)
        finally:
            self._metrics.running.dec()
            self._took.append(time.perf_counter() - started)
            self._places.release()

    def _full(self) -> Refusal:
        """When a place is likely to be free: what waits, at the pace of the last answers."""
        pace = sum(self._took) / len(self._took) / self._concurrency
        wait_s = min(60.0, max(1.0, pace * (self._waiting + 1)))
        return Refusal(429, "server: all places are taken and the queue is full; try again later",
                       code="queue_full", retry_after_s=wait_s)  # fmt: skip
