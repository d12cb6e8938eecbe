"""`POST /v1/chat/completions`: read, decide, answer, note. Stops all work when the client goes away."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from apportion.serve.answering import Answerer
from apportion.serve.chat_request import ChatRequest, parse_chat
from apportion.serve.controls import OFF, Controls, aliases, read_controls
from apportion.serve.deciding import Decider, Plan
from apportion.serve.decision import Decided, Outcome
from apportion.serve.events import KEEP_ALIVE
from apportion.serve.refusal import Refusal, json_response
from apportion.serve.serving import Serving

T = TypeVar("T")
Work = AsyncIterator[bytes]


async def chat_completions(request: Request, serving: Serving) -> Response:
    """Answer one chat request.

    Raises:
        Refusal: the body, a control or the upstream.
    """
    started = time.perf_counter()
    chat = parse_chat(await read_body(request, serving))
    controls = controls_of(chat, request.headers, serving)
    exchange = _Exchange(serving, chat, controls, started)
    if chat.stream:
        return await exchange.streamed(request)
    return await until_gone(request, exchange.plain())


def controls_of(chat: ChatRequest, headers: Mapping[str, str], serving: Serving) -> Controls:
    """The controls by alias, header and body; the upstream's own name means `auto`."""
    named = aliases(serving.settings.default, timed=serving.routing.timed)
    abilities = serving.backend.abilities
    known = {**named, abilities.model: named["auto"]} if abilities else named
    if chat.model not in known:
        raise Refusal(
            404,
            f"model: {chat.model[:80]!r} is unknown, expected one of {', '.join(known)}",
            code="model_not_found",
            param="model",
        )
    return read_controls(known[chat.model], headers, chat.controls)


async def read_body(request: Request, serving: Serving) -> bytes:
    """The body, within the limits of size and time.

    Raises:
        Refusal: 413 or 408. ClientDisconnect: the client went away.
    """
    limit, data = serving.settings.max_body_bytes, bytearray()
    said = request.headers.get("content-length", "")
    too_large = Refusal(413, f"body: is larger than {limit} bytes", code="request_too_large")
    if said.isdecimal() and int(said) > limit:
        raise too_large
    try:
        async with asyncio.timeout(serving.settings.timeouts.body_s):
            async for piece in request.stream():
                data += piece
                if len(data) > limit:
                    raise too_large
    except TimeoutError as error:
        raise Refusal(408, f"body: did not arrive within {serving.settings.timeouts.body_s:g} s") from error
    return bytes(data)


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; the work is cancelled when the client goes away.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(slots=True)
class _Exchange:
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
        except Refusal as refusal:
            self._failed(refusal)
            raise
        except asyncio.CancelledError:
            self.outcome.status = "cancelled"
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
            if isinstance(error, Refusal):
                self._failed(error)
            await self.close()
            raise
        headers = self.decided.headers() if self.decided else {}
        return Stream(self._guarded(events), headers, self)

    async def close(self, *, cancelled: bool = False) -> None:
        """Let go of the upstream and note what came of it."""
        if cancelled and self.outcome.status == "ok":
            self.outcome.status = "cancelled"
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
        except Refusal as refusal:
            self._failed(refusal)
            yield refusal.event()
        finally:
            begun.cancel()

    async def _guarded(self, events: Work) -> Work:
        """The events; a failure in the middle is an event of its own."""
        try:
            async for data in events:
                yield data
        except Refusal as refusal:
            self._failed(refusal)
            yield refusal.event()

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
        return Answerer(self.serving.backend, self.serving.routing)

    def _failed(self, refusal: Refusal) -> None:
        self.outcome.status, self.outcome.error = "error", refusal.message

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

    def __init__(self, events: Work, headers: dict[str, str], exchange: _Exchange) -> None:
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
