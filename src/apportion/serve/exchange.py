"""One chat request on its way to an answer: decided, answered, noted, and let go of when its client goes away."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from apportion.serve.answering import Answerer
from apportion.serve.chat_request import ChatRequest
from apportion.serve.controls import OFF, Controls
from apportion.serve.deciding import Decider, Plan
from apportion.serve.decision import Decided, Outcome
from apportion.serve.events import KEEP_ALIVE, event
from apportion.serve.incoming import until_gone
from apportion.serve.refusal import Refusal, cut_off, json_response, our_fault
from apportion.serve.serving import Serving

log = logging.getLogger("apportion.serve")
Work = AsyncIterator[bytes]


@dataclass(slots=True)
class Exchange:
    """One request on its way to an answer."""

    serving: Serving
    chat: ChatRequest
    controls: Controls
    started: float
    outcome: Outcome = field(default_factory=Outcome)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    decided: Decided | None = None

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1000

    async def plain(self) -> Response:
        """The whole answer."""
        try:
            plan = await self._plan()
            reply = await self._answerer.whole(self.chat, plan, self.outcome)
            self.outcome.first_ms = self.elapsed_ms()
            return json_response(reply, headers=plan.decided.headers())
        except Exception as error:
            self._failed(error)
            raise
        except asyncio.CancelledError:
            self._left()
            raise
        finally:
            self._note()

    async def streamed(self, request: Request) -> Response:
        """A stream; begun with a comment where the decision takes long, so that nothing in between gives up."""
        begun = asyncio.ensure_future(self._begin())
        wait = self.serving.settings.timeouts.keep_alive_s
        try:
            await until_gone(request, asyncio.wait({begun}, timeout=wait))
        except BaseException:
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)
            await self.close(cancelled=True)
            raise
        if not begun.done():
            return Stream(self._late(begun), {"x-apportion-route": "pending"}, self)
        try:
            events = begun.result()
        except BaseException as error:
            if isinstance(error, Exception):
                self._failed(error)
            await self.close()
            raise
        headers = self.decided.headers() if self.decided else {}
        return Stream(self._guarded(events), headers, self)

    async def close(self, *, cancelled: bool = False) -> None:
        """Let go of the upstream and note what came of it."""
        if cancelled and self.outcome.status == "ok":
            self._left()
        await self.stack.aclose()
        self._note()

    async def _begin(self) -> Work:
        plan = await self._plan()
        return await self._answerer.begin(self.chat, plan, self.outcome, self.stack, self.elapsed_ms)

    async def _late(self, begun: "asyncio.Future[Work]") -> Work:
        """Comments until the answer has begun, then its events."""
        wait = self.serving.settings.timeouts.keep_alive_s
        try:
            while not begun.done():
                yield KEEP_ALIVE
                await asyncio.wait({begun}, timeout=wait)
            async for data in self._guarded(begun.result()):
                yield data
        except Exception as error:
            yield self._failure(error)
        finally:
            begun.cancel()

    async def _guarded(self, events: Work) -> Work:
        """The events; a failure in the middle is an event of its own."""
        try:
            async for data in events:
                yield data
        except Exception as error:
            yield self._failure(error)

    async def _plan(self) -> Plan:
        """The decision; in the shadow every request is passed on as it is."""
        shadow = self.serving.settings.shadow
        plan = await self._decide(replace(self.controls, route=OFF) if shadow else self.controls)
        if shadow:
            plan = replace(plan, decided=replace(plan.decided, reason="shadow"))
        self.decided = plan.decided
        return plan

    async def _decide(self, controls: Controls) -> Plan:
        serving = self.serving
        decider = Decider(serving.routing, serving.backend, serving.settings)
        return await decider.decide(self.chat, controls, self.started)

    @property
    def _answerer(self) -> Answerer:
        return Answerer(self.serving.backend, self.serving.routing, self.serving.settings.keep_prompts)

    def _failed(self, error: Exception) -> Refusal:
        """What the client is told of a failure, which is noted."""
        refusal = error if isinstance(error, Refusal) else our_fault()
        self.outcome.status, self.outcome.error = "error", refusal.message
        return refusal

    def _failure(self, error: Exception) -> bytes:
        """The same as the last event of a stream that has begun; nobody else logs a fault of ours there."""
        refusal = self._failed(error)
        if refusal is not error:
            log.error("a fault of ours in a stream", exc_info=error)
        return event(refusal.body())

    def _left(self) -> None:
        """Nobody waits for the answer: its client went away, or the server does."""
        if self.serving.cut:
            self._failed(cut_off())
        else:
            self.outcome.status = "cancelled"

    def _note(self) -> None:
        self.outcome.total_ms = self.elapsed_ms()
        if self.decided is not None and self.serving.settings.shadow:
            self.serving.behind(self._shadow(self.decided))
        elif self.decided is not None:
            self.serving.note(self.decided, self.outcome)

    async def _shadow(self, decided: Decided) -> None:
        """Decide after the answer, for the log alone."""
        try:
            found = (await self._decide(self.controls)).decided
            kept = {name: getattr(decided, name) for name in ("id", "created", "route", "reason", "forwarded")}
            decided = replace(found, **kept, draft_reused=False, shadow=found.route)
        except Refusal as refusal:
            decided = replace(decided, weaker=(f"not decided: {refusal.message}",))
        self.serving.note(decided, self.outcome)


class Stream(StreamingResponse):
    """Events; whatever ends them, their exchange is closed."""

    media_type = "text/event-stream"

    def __init__(self, events: Work, headers: dict[str, str], exchange: Exchange) -> None:
        super().__init__(events, headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._exchange = exchange
        self._whole = False

    async def stream_response(self, send: Send) -> None:
        await super().stream_response(send)
        self._whole = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._exchange.close(cancelled=not self._whole)
