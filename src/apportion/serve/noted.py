"""Every request, counted and logged once when it has ended, and told when the server ends it. ASGI, outermost."""

import asyncio
import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apportion.serve.admission import GUARDED
from apportion.serve.events import event
from apportion.serve.refusal import cut_off
from apportion.serve.serving import Serving

log = logging.getLogger("apportion.serve")


@dataclass(slots=True)
class _Sent:
    """What a client has got so far."""

    status: int = 0
    events: bool = False
    whole: bool = False


class Noted:
    """Counts and logs every request, once, when it has ended."""

    def __init__(self, app: ASGIApp, *, serving: Serving) -> None:
        self._app, self._serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, sent, task = time.perf_counter(), _Sent(), asyncio.current_task()
        assert task is not None
        self._serving.requests.add(task)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.status = message["status"]
                kind = dict(message.get("headers") or ()).get(b"content-type", b"")
                sent.events = kind.startswith(b"text/event-stream")
            elif message["type"] == "http.response.body":
                sent.whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if not self._serving.cut:
                raise
            task.uncancel()
            await _tell(sent, scope, receive, noting)
        finally:
            self._serving.requests.discard(task)
            unrouted = scope["path"] if scope["path"] in GUARDED else "other"  # refused before it came to a route
            path = str(getattr(scope.get("route"), "path", unrouted))
            status = sent.status or 500
            self._serving.metrics.requests.labels(path, str(status)).inc()
            if path.startswith("/v1/"):
                took = (time.perf_counter() - started) * 1000
                log.info("request", extra={"fields": {"path": path, "status": status, "ms": round(took, 1)}})


async def _tell(sent: _Sent, scope: Scope, receive: Receive, send: Send) -> None:
    """Say that the answer ends here: as an error, or as the last event of a stream that has begun."""
    refusal = cut_off()
    if not sent.status:
        await refusal.response()(scope, receive, send)
    elif sent.events and not sent.whole:
        await send({"type": "http.response.body", "body": event(refusal.body()), "more_body": False})
