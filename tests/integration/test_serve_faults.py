"""How the server stands what networks and upstreams do to it: broken streams, hostile bodies, restarts, SIGTERM."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import openai
import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from apportion.serve import Address, Routing, Settings, Timeouts, Upstream, create_app
from apportion.serve.run import Impatient
from tests.hostile_bodies import hostile
from tests.integration.serving import ASKED, KEY, QUESTION, get, logged, serving
from tests.integration.upstream_stub import Stub, served, upstream


def _collect(chunks: Any, seen: list[Any]) -> None:
    for chunk in chunks:
        seen.append(chunk)


@pytest.mark.parametrize("stream", [False, True])
def test_the_upstream_is_cancelled_when_the_client_goes(stub: Stub, known: Routing, stream: bool) -> None:
    stub.token_s, stub.reply = 0.05, lambda messages: "word " * 200
    with serving(stub, known) as client:
        url = client.base_url
        connection = http.client.HTTPConnection(url.host, url.port, timeout=10)
        body = json.dumps({"model": "direct", "messages": QUESTION, "stream": stream})
        if not stream:
            stub.pause_s = 30.0
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        if stream:
            assert connection.getresponse().read(20)
        else:
            _until(lambda: bool(stub.bodies))
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        assert logged(client)[0]["status"] == "cancelled"
        if stream:
            _until(lambda: stub.cancelled == 1)
        _until_idle(client)


def test_an_upstream_that_breaks_off_is_an_error_in_the_stream(stub: Stub, known: Routing) -> None:
    stub.cut_after, stub.reply = 2, lambda messages: "a long reply that is cut"
    with serving(stub, known) as client:
        seen: list[Any] = []
        chunks = client.chat.completions.create(model="cot", messages=QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="upstream"):
            _collect(chunks, seen)
        assert len(seen) == 3, "role and two tokens came through"
        assert logged(client)[0]["status"] == "error"
        stub.cut_after = None
        assert list(client.chat.completions.create(model="cot", messages=QUESTION, stream=True))


@pytest.mark.parametrize(
    ("fail", "status", "said"),
    [
        ((500, {"error": {"message": "CUDA out of memory"}}), 502, "CUDA out of memory"),
        ((401, {"error": {"message": "bad key"}}), 502, "HTTP 401"),
        ((429, {"error": {"message": "slow down"}}), 429, "slow down"),
        ((422, {"error": {"message": "top_k: too small"}}), 422, "top_k"),
        ((422, {"detail": "Unexpected fields"}), 422, "upstream: Unexpected fields"),
        ((200, "<html>hello</html>"), 502, "no JSON object"),
        ((200, {"error": {"code": 429, "message": "busy"}}), 429, "busy"),
        ((302, "elsewhere"), 502, "HTTP 302"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_upstream_errors_are_told_in_openais_words(
    stub: Stub, known: Routing, fail: tuple[int, Any], status: int, said: str, stream: bool
) -> None:
    with serving(stub, known) as client:
        stub.fail = fail
        with pytest.raises(openai.APIError) as error:
            list(client.chat.completions.create(model="cot", messages=QUESTION, stream=stream))
        assert said in str(error.value)
        if isinstance(error.value, openai.APIStatusError):
            assert error.value.status_code == status


def test_an_upstream_that_comes_later(known: Routing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apportion.serve.upstream.RETRIED_S", 0.0)
    absent = Stub(url="http://127.0.0.1:9/v1")
    with serving(absent, known) as client:
        assert get(client, "/health")[0] == 200
        status, said = get(client, "/ready")
        assert (status, said["ready"]) == (503, False)
        assert "cannot be reached" in said["reason"]
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(**ASKED)
        assert error.value.status_code == 503
        with upstream() as late:
            client.state.backend.address = Address(late.url)  # type: ignore[attr-defined]
            assert get(client, "/ready")[0] == 200
            assert client.chat.completions.create(**ASKED).choices


def test_a_path_says_how_it_may_be_asked(stub: Stub, known: Routing) -> None:
    with serving(stub, known) as client, closing(http.client.HTTPConnection(client.base_url.netloc.decode())) as asking:
        for method, path, status, allowed in (
            ("HEAD", "/health", 200, None),
            ("HEAD", "/v1/models", 200, None),
            ("GET", "/v1/chat/completions", 405, "POST"),
            ("DELETE", "/v1/models/auto", 405, "GET"),
        ):
            asking.request(method, path)
            with asking.getresponse() as answer:
                assert (answer.status, answer.headers["allow"]) == (status, allowed), (method, path)
                assert bool(answer.read()) == (method != "HEAD")


def test_bodies_that_are_too_large_too_slow_or_no_json(stub: Stub, known: Routing) -> None:
    with serving(stub, known, max_body_bytes=2048, timeouts=Timeouts(body_s=1.0)) as client:
        host, port = client.base_url.host, client.base_url.port

        def send(head: bytes, body: bytes) -> bytes:
            with socket.create_connection((host, port), timeout=10) as raw:
                first = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                raw.sendall(first + head + b"\r\n" + body)
                found = b""
                while piece := raw.recv(65536):
                    found += piece
                return found

        assert b" 413 " in send(b"content-length: 999999\r\n", b"")[:20]
        chunked = b"".join(b"400\r\n" + b"x" * 1024 + b"\r\n" for _ in range(4))
        assert b" 413 " in send(b"transfer-encoding: chunked\r\n", chunked)[:20]
        assert b" 408 " in send(b"content-length: 100\r\n", b"{")[:20]
        for body in (b"", b"no json", b"\xff\xfe{}", b"[1]", b'{"a": NaN}', b"[" * 1500):
            answer = send(b"content-length: %d\r\n" % len(body), body)
            assert b" 400 " in answer[:20], body
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("held", [b"GET /health HTTP/1.1\r\nHo", b"\r\n", b"x"])
def test_a_kept_connection_on_which_no_head_ends_is_closed(
    stub: Stub, known: Routing, monkeypatch: pytest.MonkeyPatch, held: bytes
) -> None:
    app = create_app(known, Upstream(Address(stub.url)))
    with served(app, http=Impatient, timeout_keep_alive=3600) as url, _connected(url) as raw:
        length = b"content-length: 100\r\n" if held == b"x" else b""  # of a body that nobody reads
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n" + length + b"\r\n")
        assert b" 200 " in raw.recv(65536)
        monkeypatch.setattr("apportion.serve.run.HEAD_S", 0.3)  # read when a byte comes
        raw.sendall(held)
        while raw.recv(65536):
            pass  # a connection that stays open ends in a TimeoutError


def test_an_answer_in_work_is_not_cut_by_the_beginning_of_the_next_request(
    stub: Stub, known: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.token_s, stub.reply = 0.05, lambda messages: "word " * 10
    body = json.dumps({"model": "direct", "messages": QUESTION, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    app = create_app(known, Upstream(Address(stub.url)))
    with served(app, http=Impatient) as url, _connected(url) as raw:
        raw.sendall(head + body)
        found = raw.recv(65536)
        monkeypatch.setattr("apportion.serve.run.HEAD_S", 0.05)  # read when a byte comes
        raw.sendall(b"GET /health HT")
        while b"data: [DONE]" not in found:
            found += (piece := raw.recv(65536))
            assert piece, found


def test_a_client_that_does_not_read_its_stream_keeps_no_place(
    stub: Stub, known: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apportion.serve.run.READ_S", 0.3)
    body = json.dumps({**ASKED, "model": "direct", "stream": True, "max_tokens": 500_000}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    stub.reply = lambda messages: "word " * 400_000  # more than the buffers of two sockets hold
    app = create_app(known, Upstream(Address(stub.url)), Settings(concurrency=1, queue=1))
    with served(app, http=Impatient) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        client.state = app.state.serving  # type: ignore[attr-defined]
        with _connected(url) as raw:
            raw.sendall(head + body)
            assert logged(client)[0]["status"] == "cancelled"
            _until(lambda: stub.cancelled == 1)
            stub.reply = lambda messages: "Bern"
            client.with_options(timeout=60).chat.completions.create(model="direct", messages=QUESTION)


def test_a_client_that_reads_slowly_is_waited_for() -> None:
    timers, transport = _Timers(), _Transport()
    protocol = Impatient.__new__(Impatient)
    protocol.loop, protocol.transport = timers, transport  # type: ignore[assignment]
    protocol.flow = FlowControl(protocol.transport)
    transport.waiting = 9000
    protocol.pause_writing()
    for left in (8999, 5000, 10):
        transport.waiting = left
        timers.elapse()
        assert not transport.aborted
    protocol.resume_writing()
    timers.elapse()
    assert not transport.aborted, "all was read"
    protocol.pause_writing()
    timers.elapse()
    assert transport.aborted, "nothing was read"


class _Timers:
    """A loop whose time a test tells."""

    def __init__(self) -> None:
        self._set: list[asyncio.TimerHandle] = []

    def call_later(self, delay: float, call: Callable[..., object], *given: object) -> asyncio.TimerHandle:
        self._set.append(asyncio.TimerHandle(delay, call, given, self))  # type: ignore[arg-type]
        return self._set[-1]

    def elapse(self) -> None:
        """The times of all timers so far."""
        elapsed, self._set = self._set, []
        for timer in elapsed:
            if not timer.cancelled():
                timer._run()

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...


class _Transport:
    """Bytes that wait to be read."""

    waiting, aborted = 0, False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.aborted = True


def test_what_is_no_http_is_told_in_openais_words(stub: Stub, known: Routing) -> None:
    with served(create_app(known, Upstream(Address(stub.url))), http=Impatient) as url, _connected(url) as raw:
        raw.sendall(b"no request\r\n\r\n")
        found = b""
        while piece := raw.recv(65536):
            found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    assert b" 400 " in head[:20]
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("many", [b"x: %s\r\n" % (b"y" * 1000) * 70, b"x: " + b"y" * 70_000 + b"\r\nx: y\r\n"])
@pytest.mark.parametrize("path", [b"/health", b"/" + b"x" * 70_000])
def test_a_head_that_is_too_large_is_refused(stub: Stub, known: Routing, path: bytes, many: bytes) -> None:
    with served(create_app(known, Upstream(Address(stub.url))), http=Impatient) as url, _connected(url) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n")
        assert b" 200 " in raw.recv(65536)[:20]
        found = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # what comes after the refusal is not read
            raw.sendall(b"GET " + path + b" HTTP/1.1\r\n" + many)
            while piece := raw.recv(65536):
                found += piece
    assert b" 431 " in found[:20]
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_clients_that_left_keep_no_place_in_the_queue(stub: Stub, known: Routing) -> None:
    release = threading.Event()
    with serving(stub, known, concurrency=1, queue=2) as client:
        stub.reply = lambda messages: "x" if release.wait(60) else "late"
        url, metrics = str(client.base_url), client.state.metrics  # type: ignore[attr-defined]
        body = json.dumps({"model": "direct", "messages": QUESTION}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n" % KEY.encode()
        asked = head + b"content-length: %d\r\n\r\n" % len(body) + body
        with _connected(url) as first:
            first.sendall(asked)
            _until(lambda: b"apportion_running 1.0" in metrics.text())
            with _connected(url) as second, _connected(url) as third:
                second.sendall(asked)
                third.sendall(asked)
                _until(lambda: b"apportion_waiting 2.0" in metrics.text())
            _until(lambda: b"apportion_waiting 0.0" in metrics.text())
            with _connected(url) as live:
                live.sendall(asked)
                _until(lambda: b"apportion_waiting 1.0" in metrics.text())
                release.set()
                assert b" 200 " in live.recv(65536)[:20]
                assert b" 200 " in first.recv(65536)[:20]
        _until_idle(client)


def test_a_body_that_is_slow_keeps_nobody_from_answering_and_there_are_only_so_many(stub: Stub, known: Routing) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    with serving(stub, known, concurrency=1, queue=1, timeouts=Timeouts(body_s=120.0)) as client:
        with _connected(str(client.base_url)) as slow:
            slow.sendall(head)
            client.with_options(timeout=60).chat.completions.create(**ASKED)
            with ExitStack() as others:

                def is_full() -> bool:
                    """After one more; it is refused itself where the question before is still on its way."""
                    others.enter_context(_connected(str(client.base_url))).sendall(head)
                    return _status(client) == 429

                _until(is_full)
        _until(lambda: _status(client) == 200)
        text = get(client, "/metrics")[1]
    assert 'apportion_requests_total{path="/v1/chat/completions",status="429"}' in text


def _status(client: openai.OpenAI) -> int:
    """What a question gets."""
    try:
        client.with_options(timeout=60).chat.completions.create(**ASKED)
    except openai.APIStatusError as error:
        return error.status_code
    return 200


def _connected(url: str) -> socket.socket:
    """A connection to a server; what is not answered on it is an error after a minute."""
    found = urllib.parse.urlsplit(url)
    return socket.create_connection((found.hostname, found.port), timeout=60)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def _until_idle(client: openai.OpenAI) -> None:
    """Until every place is free again."""
    metrics = client.state.metrics  # type: ignore[attr-defined]
    _until(lambda: b"apportion_running 0.0" in metrics.text())


def _until_up(port: int) -> None:
    def is_up() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            return False
        return True

    _until(is_up)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/decisions/dec-x/feedback", "/v1/embeddings"])
def test_hostile_bodies_get_well_formed_answers(stub: Stub, known: Routing, path: str) -> None:
    stub.reply = lambda messages: "1191"
    with serving(stub, known) as client:
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=20)
        with closing(connection):
            for number, body in enumerate(hostile(600 if "chat" in path else 100, seed=7)):
                connection.request("POST", path, body, {"content-type": "application/json"})
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status < 500, (number, body[:300], said)
                if answer.headers["content-type"].startswith("text/event-stream"):
                    assert said.endswith(b"data: [DONE]\n\n"), (number, body[:300])
                    continue
                found = json.loads(said)
                assert ("error" in found) == (answer.status != 200), (number, body[:300], said)
                if "error" in found:
                    assert set(found["error"]) == {"message", "type", "param", "code"}
        assert get(client, "/health")[0] == 200
        _until_idle(client)
