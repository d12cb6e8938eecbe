"""A stream of an upstream that breaks off: what came before is passed on, however late its reader is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from apportion.serve import Address, Upstream
from apportion.serve.refusal import Refusal

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
