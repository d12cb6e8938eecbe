"""A backend that is another server: any that speaks OpenAI's chat completions over HTTP.

Contacts the given URL only (redirects are refused). The key is in no message and no log.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from apportion.core.errors import InputError
from apportion.serve.backend import Abilities, Body
from apportion.serve.events import as_events
from apportion.serve.refusal import Refusal, encode
from apportion.serve.routing import (
    PROBE,
    REFUSING,
    Completion,
    Habits,
    Request,
    after_refusal,
    body_of,
    read_completion,
)
from apportion.serve.upstream_errors import (
    RETRIED_S,
    absent,
    answer_of,
    broken,
    fails,
    object_of,
    refused,
    unreachable,
    wait_of,
)

MAX_BODY_BYTES = 64 << 20
UNNAMED = "several_models"
LASTING = (UNNAMED, "upstream_refuses_us")  # what no waiting mends


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is and how long it may take.

    Attributes:
        url: such as http://127.0.0.1:8000/v1. model: its name for the model; None when it serves just one.
        key: sent as bearer; empty sends none.
        connect_s: until connected. answer_s: of a plain answer, and of a stream until its first byte.
        idle_s: between two pieces of a stream.
    """

    url: str
    model: str | None = None
    key: str = ""
    connect_s: float = 5.0
    answer_s: float = 300.0
    idle_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"--llm {self.url}: expected http://host:port/v1 or https://...")


class Upstream:
    """A server as a backend; see the protocol `Backend`.

    Attributes:
        expected: the model that the router was trained on; a server of another one is not used. None takes any.
        lasting: whether the trouble stays until an operator does something.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.abilities: Abilities | None = None
        self.trouble = "not reached yet"
        self.expected: str | None = None
        self.lasting = False
        self._session: aiohttp.ClientSession | None = None
        self._probing: asyncio.Lock | None = None
        self._tried = 0.0

    @property
    def key(self) -> str:
        """What no client is shown."""
        return self.address.key

    async def start(self) -> None:
        """Open the connections and find out what the server can do."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.address.connect_s)
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self.address.key:
            headers["authorization"] = f"Bearer {self.address.key}"
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers, auto_decompress=True, trust_env=False
        )
        self._probing, self._tried = asyncio.Lock(), -RETRIED_S  # of the loop that runs now
        await self._reach()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def chat(self, body: Body) -> dict[str, Any]:
        """One plain completion; asked again once where a kept connection turned out to be closed."""
        ready = await self._ready()
        asked = encode({**body, "model": ready.model})
        return answer_of(self._good(await self._post("/chat/completions", asked)), self.key)

    async def measured(self, body: Body, request: Request) -> Completion:
        """One plain completion, read with what was measured of it."""
        begun = time.perf_counter()
        return read_completion(await self.chat(body), begun, replace(request, logprobs=True))

    @asynccontextmanager
    async def stream(self, body: Body) -> AsyncIterator[AsyncIterator[bytes]]:
        """The raw bytes of the events, as they come."""
        ready = await self._ready()
        asked = encode({**body, "model": ready.model})
        response = await self._open("/chat/completions", asked)
        try:
            if response.status == 200 and response.content_type == "text/event-stream":
                yield self._pieces(response)
            else:  # an error, or a server that streams nothing
                yield as_events(answer_of(self._good(await self._whole(response)), self.key))
        finally:
            response.close()  # a stream that was left early is cancelled upstream by its closed connection

    async def forward(self, path: str, body: Body) -> bytes:
        """The server's answer to another endpoint; its errors in OpenAI's shape whatever theirs is."""
        await self._ready()
        said = await self._post(path, encode(body))
        self._good(said)
        return said.data

    def _good(self, said: "_Said") -> dict[str, Any]:
        """The object of a good answer.

        Raises:
            Refusal: it is none.
        """
        found = object_of(said.status, said.data, self.key)
        if said.status != 200 or fails(found):
            raise refused(said.status, found, self.key, said.wait_s)
        return found

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        content = response.content
        try:
            while True:
                data = await content.readany()
                if not data:
                    return
                yield data
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if held := _unread(content):
                yield held
            self._unreachable(error)
            raise broken(error) from error

    async def _post(self, path: str, asked: bytes) -> "_Said":
        response = await self._open(path, asked, total_s=self.address.answer_s)
        async with response:
            return await self._whole(response)

    async def _whole(self, response: aiohttp.ClientResponse) -> "_Said":
        try:
            return await _said(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    async def _open(self, path: str, asked: bytes, *, total_s: float | None = None) -> aiohttp.ClientResponse:
        assert self._session is not None, "start() comes first"
        waits = self.address.idle_s if total_s is None else None
        limits = aiohttp.ClientTimeout(total=total_s, sock_connect=self.address.connect_s, sock_read=waits)
        for attempt in (1, 2):
            try:
                async with asyncio.timeout(self.address.answer_s):
                    response = await self._session.post(
                        self.address.url.rstrip("/") + path, data=asked, timeout=limits, allow_redirects=False
                    )
                self.trouble = ""
                return response
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if attempt == 2 or not _lost(error):  # a kept connection may have been closed; a fresh one may not
                    raise self._unreachable(error) from error
        raise AssertionError("the loop returns or raises")

    async def _ready(self) -> Abilities:
        """The abilities; a server that was not there is tried again, at most every few seconds, and one that was lost
        is looked at before it is asked again: it may come back as another model."""
        if self.abilities is None:
            await self._reach()
        elif self.trouble:
            await self.check()
        if self.abilities is None:
            raise absent(self.trouble)
        return self.abilities

    async def _reach(self) -> None:
        assert self._probing is not None, "start() comes first"
        async with self._probing:
            now = asyncio.get_running_loop().time()
            if self.abilities is not None or now - self._tried < RETRIED_S:
                return
            self._tried = now
            try:
                found = await self._probe(self.address.model or await self._only_model())
                self._refuse_other(found.identity)
                self.abilities, self.trouble = found, ""
            except Refusal as refusal:
                self.trouble = refusal.message.removeprefix("upstream: ")
                self.lasting = refusal.code in LASTING

    def _refuse_other(self, identity: str) -> None:
        """What `refuse_other` does before the start, for a server that was reached only after it."""
        if self.expected is not None and identity != self.expected:
            raise Refusal(503, f"upstream: is {identity!r}, and the router was trained on {self.expected!r}; "
                          "serve that model, or start with a router that was trained on this one")  # fmt: skip

    async def check(self) -> bool:
        """Whether the server answers now; for `/ready`."""
        known = self.abilities
        if known is None:
            await self._reach()
        elif self.trouble:
            try:
                if await self._only_model() == known.model:
                    self.trouble = ""
                else:  # it came back as another one
                    self.abilities = None
                    await self._reach()
            except Refusal:
                pass
        return self.abilities is not None and not self.trouble

    async def _only_model(self) -> str:
        assert self._session is not None
        url = self.address.url.rstrip("/") + "/models"
        try:
            limits = aiohttp.ClientTimeout(total=30.0, sock_connect=self.address.connect_s)
            async with self._session.get(url, timeout=limits, allow_redirects=False) as response:
                said = await _said(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        listed = self._good(said).get("data")
        names = [str(one.get("id")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        if self.address.model is None and len(names) != 1:
            raise Refusal(503, f"upstream: lists {len(names)} models ({', '.join(names[:20])}); name one with --model",
                          code=UNNAMED if names else None)  # fmt: skip
        return self.address.model or names[0]

    async def _probe(self, model: str) -> Abilities:
        """Find out by short completions whether log-probabilities come back, and what the server refuses."""
        habits, said = Habits(), ""
        while True:  # each turn asks for less, until nothing is left to give up
            options, started = body_of(PROBE, model, habits), time.perf_counter()
            reply = await self._post("/chat/completions", encode({**options, **options.pop("extra_body", {})}))
            try:
                found = self._good(reply)
                break
            except Refusal as refusal:
                other = after_refusal(habits, refusal.message, blind=True) if reply.status in REFUSING else None
                if other is None:
                    raise
                said, habits = refusal.message if habits.logprobs and not other.logprobs else said, other
        if not habits.logprobs:
            return Abilities(model, f"server:{model}", False, f"the server refuses them: {said}", habits)
        returned = read_completion(found, started, PROBE).token_logprobs is not None
        reason = "the server returned them when probed" if returned else "the server answers without them"
        return Abilities(model, f"server:{model}", returned, reason, habits)

    def _unreachable(self, error: BaseException) -> Refusal:
        refusal = unreachable(error)
        self.trouble = refusal.message.removeprefix("upstream: ")
        return refusal


def _lost(error: BaseException) -> bool:
    """Whether a connection that was there was closed under a request, which aiohttp tells as what it was doing then."""
    closed = aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError
    return isinstance(error, closed) and not isinstance(error, aiohttp.ClientConnectorError)


def _unread(content: aiohttp.StreamReader) -> bytes:
    """What came before a connection broke and was not waited for; it is given out only where no error is set."""
    content.set_exception(None)  # type: ignore[arg-type]
    return content.read_nowait()


@dataclass(frozen=True, slots=True)
class _Said:
    """What came back, unread; `wait_s` is its `Retry-After`."""

    status: int
    data: bytes
    wait_s: float | None


async def _said(response: aiohttp.ClientResponse) -> _Said:
    """The whole answer.

    Raises:
        Refusal: 502, it is too long.
    """
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            raise Refusal(502, f"upstream: answers more than {MAX_BODY_BYTES} bytes", code="bad_upstream_answer")
    return _Said(response.status, bytes(data), wait_of(response.headers.get("retry-after")))
