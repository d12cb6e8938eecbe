"""How the server goes: a process that is told to by SIGTERM, in time and not."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from apportion.serve.decision_log import read_decisions
from tests.integration.serving import ASKED, QUESTION
from tests.integration.upstream_stub import Stub

SERVER = """
import sys
from pathlib import Path
from apportion.serve import Address, Settings, Timeouts, Upstream, create_app
import apportion.serve.run as r
from tests.routings import routing, static_router
r.HEAD_S, folder = 1.0, Path(sys.argv[2])
settings = Settings(decisions=folder / "decisions.sqlite", timeouts=Timeouts(shutdown_s=float(sys.argv[3])))
app = create_app(routing(folder, static_router("direct")), Upstream(Address(sys.argv[1])), settings)
socket = r.listen("127.0.0.1", 0)
print(socket.getsockname()[1], flush=True)
r.log_to_stderr("info")
r.run(app, [socket])
"""


@contextmanager
def _process(stub: Stub, folder: Path, shutdown_s: float) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    words = [sys.executable, "-c", SERVER, stub.url, str(folder), str(shutdown_s)]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, env=environment)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        urllib.request.urlopen(f"{url}/health", timeout=60).close()
        yield process, url
    finally:
        process.kill()
        process.communicate()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def _connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60)


@pytest.mark.slow
def test_sigterm_finishes_streams_and_slow_loris_is_shut_out(stub: Stub, tmp_path: Path) -> None:
    stub.token_s, stub.reply = 0.15, lambda messages: "word " * 20
    with _process(stub, tmp_path, 60.0) as (process, url):
        with _connected(url) as loris:
            loris.sendall(b"POST /v1/chat/compl")
            assert loris.recv(100) == b"", "closed without an answer"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            chunks = client.chat.completions.create(stream=True, **ASKED)
            said = [next(chunks).choices[0].delta.content or ""]
            process.send_signal(signal.SIGTERM)
            said += [one.choices[0].delta.content or "" for one in chunks if one.choices]
        assert "".join(said) == "word " * 20, "the stream was finished after SIGTERM"
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    assert [one["status"] for one in read_decisions(tmp_path / "decisions.sqlite")] == ["ok"]


@pytest.mark.slow
def test_what_is_not_finished_in_time_is_told_and_logged(stub: Stub, tmp_path: Path) -> None:
    stub.token_s = 600.0  # after the first event

    def ask(url: str, stream: bool) -> tuple[int, str, bytes]:
        body = json.dumps({"model": "direct", "messages": QUESTION, "stream": stream}).encode()
        try:
            with urllib.request.urlopen(f"{url}/v1/chat/completions", body, timeout=60) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.status, error.headers["content-type"], error.read()

    with _process(stub, tmp_path, 0.2) as (process, url), concurrent.futures.ThreadPoolExecutor(6) as threads:
        streams = [threads.submit(ask, url, True) for _ in range(3)]
        _until(lambda: len(stub.bodies) == 3)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            chunks = client.chat.completions.create(model="cot", messages=QUESTION, stream=True)  # type: ignore[call-overload]
            assert next(chunks), "a stream has begun"
            stub.pause_s = 600.0
            plain = [threads.submit(ask, url, False) for _ in range(3)]
            _until(lambda: len(stub.bodies) == 7)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="it stops"):
                list(chunks)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        for one in plain:
            status, kind, said = one.result()
            assert (status, kind) == (503, "application/json")
            assert _error(said)["code"] == "shutting_down"
        for one in streams:
            status, kind, said = one.result()
            assert status == 200 or kind == "application/json", "before its first event it is an error like others"
            last = said.strip().rpartition(b"data: ")[2] if status == 200 else said
            assert _error(last)["code"] == "shutting_down"
    rows = read_decisions(tmp_path / "decisions.sqlite")
    assert [one["status"] for one in rows] == ["error"] * 7
    assert all("not finished in time" in one["error"] for one in rows)
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    assert '"trace"' not in said


def _error(said: bytes) -> Any:
    found = json.loads(said)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found
