"""Connections to an upstream that it closes: in a stream, and between two requests without a word."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp.client_reqrep import ConnectionKey

from apportion.serve import Address, Upstream
from apportion.serve.refusal import Refusal
from apportion.serve.upstream import _lost

EVENTS = [b"data: {}\n\n" * count for count in (1, 2, 3)]


@asynccontextmanager
async def broken_stream() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server whose only answer is a stream that is cut when the event is set; yields its URL and the event."""
    breaks = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number, data in enumerate(EVENTS):
            if number == 1:
                await breaks.wait()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", breaks


async def _read_late() -> tuple[bytes, Refusal]:
    """What a reader gets that is not waiting as the stream breaks off."""
    upstream, found = Upstream(Address("http://127.0.0.1:9/v1")), b""
    async with broken_stream() as (url, breaks), aiohttp.ClientSession() as session, session.get(url) as response:
        pieces = upstream._pieces(response)
        found += await anext(pieces)
        breaks.set()
        async with asyncio.timeout(60):
            while response.content.exception() is None:
                await asyncio.sleep(0)
        try:
            async for piece in pieces:
                found += piece
        except Refusal as refusal:
            return found, refusal
    raise AssertionError("the stream ended as if it were whole")


def test_what_came_before_the_break_is_passed_on() -> None:
    found, refusal = asyncio.run(_read_late())
    assert found == b"".join(EVENTS)
    assert refusal.code == "upstream_broke_off"


@asynccontextmanager
async def closing_server() -> AsyncIterator[tuple[str, list[int]]]:
    """A server that closes every connection after one answer and does not say so; yields its URL and those of each."""
    message = {"role": "assistant", "content": "Bern"}
    said = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    answers: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(said))
        writer.write(said)
        answers.append(1)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", answers


async def _asked_often(times: int) -> int:
    """How many of some requests, each sent as soon as the one before is answered, are answered."""
    async with closing_server() as (url, answers):
        upstream = Upstream(Address(url, model="tiny"))
        await upstream.start()
        begun = len(answers)
        try:
            for _ in range(times):
                await upstream.chat({"messages": [{"role": "user", "content": "Where?"}]})
        finally:
            await upstream.close()
        return len(answers) - begun


def test_a_kept_connection_that_was_closed_is_exchanged_for_another() -> None:
    assert asyncio.run(_asked_often(20)) == 20


def test_what_tells_a_lost_connection() -> None:
    key = ConnectionKey("localhost", 9, False, True, None, None, None)
    lost = aiohttp.ServerDisconnectedError(), ConnectionResetError(), aiohttp.ClientOSError(None, "cannot write")
    assert [_lost(error) for error in lost] == [True] * len(lost)
    absent = aiohttp.ClientConnectorError(key, OSError(111, "refused")), TimeoutError(), aiohttp.ServerTimeoutError()
    assert [_lost(error) for error in absent] == [False] * len(absent)
