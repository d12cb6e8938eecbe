"""A request on its way in: its body within limits, and whether its client is still there."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from apportion.serve.refusal import Refusal
from apportion.serve.serving import Serving

T = TypeVar("T")
READ = "apportion.body"  # in a request's scope: its body, once it has been read
CLOSED = 499  # nginx's word for a client that went away; nobody sees it but the log


async def read_body(request: Request, serving: Serving) -> bytes:
    """The body, within the limits of size and time; one that has been read is there at once.

    Raises:
        Refusal: 413 or 408. ClientDisconnect: the client went away.
    """
    if READ in request.scope:
        return bytes(request.scope[READ])
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
    found = request.scope[READ] = bytes(data)
    return found


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
