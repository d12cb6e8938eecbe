"""The application on a socket: uvicorn, patient with answers and impatient with clients that never ask or read."""

import asyncio
import gc
import json
import logging
import socket
from http import HTTPStatus
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from apportion.core.errors import InputError
from apportion.serve.refusal import Refusal, encode
from apportion.serve.serving import Serving

HEAD_S = 15.0  # for a request's head, from connecting or from its first byte
MAX_HEAD_BYTES = 64 << 10  # of a request's path and headers; nginx takes half of it
READ_S = 60.0  # for some of what waits to be read, as long as nginx gives; a network that is away comes back sooner
KEEP_ALIVE_S = 75
BACKLOG = 2048
ENDING_S = 10  # for telling clients that their answers are ended


class Impatient(HttpToolsProtocol):
    """Closes a connection on which a request begins and its head does not end (slow loris) or is too large (all of it
    is held before any key is looked at), and one whose client has ceased to read: to its answer that is a client that
    went away, so its place is free and its upstream is let go of.

    A connection that says nothing between two requests is uvicorn's to close, but its timer ends with the next byte,
    whatever that begins. So while no answer is in work every byte starts ours, and only a whole head stops it.
    """

    _patience: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None  # runs while more waits to be read than may
    _head = 0  # bytes of the request's path and headers so far

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        self._has_read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._patience is None and not answering and not self.transport.is_closing():
            self._patience = self.loop.call_later(HEAD_S, self._give_up)

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._take(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._take(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._calm()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        self._has_read()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as HTTP is told in OpenAI's shape too, and a head that is too large."""
        status, said = HTTPStatus.BAD_REQUEST, msg
        if self._head > MAX_HEAD_BYTES:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            said = f"path and headers are larger than {MAX_HEAD_BYTES} bytes"
        body = encode(Refusal(status, f"request: {said}").body())
        head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _take(self, more: int) -> None:
        """Count bytes of a head; the parser gives up where this raises."""
        self._head += more
        if self._head > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")

    def _calm(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self.transport.close()

    def _watch(self) -> None:
        self._unread = self.loop.call_later(READ_S, self._look, self.transport.get_write_buffer_size())

    def _look(self, before: int) -> None:
        """Whether anything was read meanwhile; what waits is thrown away if not, or it would never be closed."""
        if self.transport.get_write_buffer_size() < before:
            self._watch()
        else:
            self.transport.abort()

    def _has_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class _Server(uvicorn.Server):
    """Ends what is not finished in time itself, so that clients are told and decisions noted before it is closed."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self._serving.settings.timeouts.shutdown_s, self._serving.end)
        await super().shutdown(sockets)
        ending.cancel()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._serving.draining = True
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    It listens from now on, not only once the server runs: two sockets may be bound to one port while neither listens,
    and the one that comes later would never be told.

    Raises:
        InputError: the port is in use, or the host is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        found.close()
        raise InputError(f"--host {host} --port {port}: cannot be listened on: {error}", "choose another") from error
    return found


def run(app: FastAPI, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM or Ctrl-C; then take nothing new and finish what runs."""
    serving: Serving = app.state.serving
    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(serving.settings.timeouts.shutdown_s) + ENDING_S,
    )
    gc.collect()
    gc.freeze()  # modules and models stay; looking through all of them again would stop every stream for a moment
    _Server(config, serving).run(sockets)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, fields. Never a body, never a key."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"), "level": record.levelname}
        line |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(level: str) -> None:
    """Structured logs of this package and of the server."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("apportion.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
