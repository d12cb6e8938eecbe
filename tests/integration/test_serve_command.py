"""`apportion serve` as an operator starts it: a real process that answers, and refusals of one line before it does."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from apportion.cli import main
from apportion.cli.serve import WhatOptions, _opened
from apportion.route.router.file import save_router
from apportion.serve import Address, Upstream, create_app
from apportion.serve.run import listen
from tests.integration.serving import ASKED, get
from tests.integration.upstream_stub import Stub, served
from tests.routings import knowing_router, routing

Command = Callable[..., tuple[int, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["apportion", "serve", "--port", "0", *map(str, arguments)])
        monkeypatch.setattr("apportion.serve.run.run", lambda *_: pytest.fail("it was started"))
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command up to where it would serve."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["apportion", "serve", "--port", "0", *map(str, arguments)])
        monkeypatch.setattr("apportion.serve.run.run", lambda *_: None)
        monkeypatch.setattr("apportion.serve.run.log_to_stderr", lambda _: None)
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, ...]:
    """`--router` and `--index` of a router that says what it was trained on."""
    known = routing(tmp_path, knowing_router())
    corpus = known.retriever.corpus_digest
    router = known.router.__class__(
        **{name: getattr(known.router, name) for name in known.router.__slots__ if name != "source"},
        source={"model": "server:tiny", "corpus": corpus, "prompts": known.prompts.digest, "k": 2},
    )
    save_router(tmp_path / "router", router, {})
    return "--router", str(tmp_path / "router"), "--index", str(tmp_path / "index")


def _refused(found: tuple[int, str], *said: str) -> None:
    code, error = found
    assert code == 1
    assert error.startswith("error: "), error
    assert "Traceback" not in error
    for part in said:
        assert part in error, error


def test_what_is_missing_is_named_at_once(command: Command) -> None:
    _refused(command(), "--llm or --model", "--index", "--router", "--demo")


def test_a_router_of_another_model_is_refused(command: Command, stub: Stub, folders: tuple[str, ...]) -> None:
    stub.models = ("another",)
    _refused(command("--llm", stub.url, *folders), "another model", "server:tiny", "server:another")


def test_a_router_of_another_model_is_refused_by_a_server_that_comes_later_too(
    stub: Stub, folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apportion.serve.upstream.RETRIED_S", 0.0)
    what = WhatOptions(llm="http://127.0.0.1:9/v1", router=Path(folders[1]), index=Path(folders[3]))
    routing, backend = _opened(what, 60.0, require_upstream=False)
    assert isinstance(backend, Upstream)
    backend.address, stub.models = Address(stub.url), ("another",)
    with served(create_app(routing, backend)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        client = client.with_options(max_retries=0)
        for models, expected in ((("another",), 503), (("tiny",), 200), (("another",), 503)):
            stub.models = models
            if backend.abilities is not None:  # a question comes before anybody looks at /ready
                with pytest.raises(openai.InternalServerError, match="trained on"):
                    client.chat.completions.create(**ASKED)
            status, said = get(client, "/ready")
            assert (status, said["reason"] == "") == (expected, expected == 200), (models, said)
            if expected == 200:
                assert client.chat.completions.create(**ASKED).choices
                backend.trouble = "lost"  # as a request that fails leaves it; what comes back is looked at
            else:
                assert "'server:another'" in said["reason"]
                assert "'server:tiny'" in said["reason"]
                with pytest.raises(openai.InternalServerError, match="trained on"):
                    client.chat.completions.create(**ASKED)


def test_an_upstream_that_no_waiting_mends_is_refused(command: Command, stub: Stub, folders: tuple[str, ...]) -> None:
    stub.models = ("tiny", "another")
    _refused(command("--llm", stub.url, *folders), "lists 2 models (tiny, another)", "--model", "waiting does not")
    stub.models, stub.fail = ("tiny",), (401, {"error": {"message": "bad key"}})
    _refused(command("--llm", stub.url, *folders), "HTTP 401", "the key")


@pytest.mark.parametrize("fail", [(500, {"error": {"message": "loading"}}), None])
def test_a_start_that_is_not_ready_says_why(
    started: Command, stub: Stub, folders: tuple[str, ...], fail: tuple[int, Any] | None
) -> None:
    stub.fail = fail
    url, why = (stub.url, "loading") if fail else ("http://127.0.0.1:9/v1", "cannot be reached")
    code, said = started("--llm", url, *folders)
    assert code == 0
    found = [line for line in said.splitlines() if line.startswith("not ready yet")]
    assert len(found) == 1
    assert url in found[0]
    assert why in found[0]
    stub.fail = None
    assert "not ready" not in started("--llm", stub.url, *folders)[1]


def test_a_folder_that_is_no_router_is_refused(command: Command, stub: Stub, folders: tuple[str, ...]) -> None:
    _refused(command("--llm", stub.url, "--router", folders[3], "--index", folders[3]), "expected apportion.router")


def test_an_upstream_that_is_required_must_be_there(command: Command, folders: tuple[str, ...]) -> None:
    absent = ("--llm", "http://127.0.0.1:9/v1", *folders)
    _refused(command(*absent, "--require-upstream"), "cannot be reached", "--require-upstream")


def test_a_port_in_use_is_refused(command: Command, folders: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _refused(command("--port", port, "--llm", "http://127.0.0.1:9/v1", *folders), f"--port {port}", "in use")


def test_a_port_that_another_server_is_about_to_use_is_refused(command: Command, folders: tuple[str, ...]) -> None:
    with listen("127.0.0.1", 0) as taken:  # no server runs on it yet
        port = taken.getsockname()[1]
        _refused(command("--port", port, "--llm", "http://127.0.0.1:9/v1", *folders), "cannot be listened on")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--concurrency", 0), "--concurrency 0"),
        (("--queue", -1), "--queue -1"),
        (("--token-weight", "-1"), "--token-weight -1"),
        (("--log-level", "loud"), "--log-level loud"),
        (("--llm", "ftp://x"), "ftp://x"),
        (("--shutdown", "nan"), "--shutdown nan"),
        (("--shutdown", -5), "--shutdown -5"),
        (("--timeout", 0), "--timeout 0"),
        (("--draft-timeout", -1), "--draft-timeout -1"),
        (("--search-timeout", "nan"), "--search-timeout nan"),
        (("--search-timeout", "inf"), "--search-timeout inf"),
        (("--batch", 0), "--batch 0"),
    ],
)
def test_bad_values_are_named(
    command: Command, stub: Stub, folders: tuple[str, ...], given: tuple[object, ...], said: str
) -> None:
    _refused(command("--llm", stub.url, *folders, *given), said)


def test_all_bad_values_are_named_at_once_before_anything_is_opened(command: Command, tmp_path: Path) -> None:
    bad = ("--concurrency", 0, "--shutdown", "nan", "--timeout", 0, "--draft-timeout", -1, "--batch", 0)
    found = command("--model", "no-such-model", *bad, "--log-level", "loud", "--api-key-file", tmp_path / "none")
    named = (name for name in (*bad[::2], "--index", "--log-level", "--api-key-file"))
    _refused(found, "8 values cannot be used", *map(str, named))
    assert "no-such-model" not in found[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--llm", "http://127.0.0.1:9/v1", "--index", "i", "--router", "r"), "--llm, --index, --router"),
        (("--model", "m"), "--model"),
        (("--prompts", "p.toml", "--dense", "d"), "--prompts, --dense"),
        (("--device", "cuda", "--batch", 4), "--device, --batch"),
    ],
)
def test_the_demonstration_takes_nothing_else(command: Command, given: tuple[object, ...], said: str) -> None:
    _refused(command("--demo", *given), f"so {said} would mean nothing")


def test_bad_keys_are_named(command: Command, stub: Stub, folders: tuple[str, ...], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    for text, said in (("", "holds no key"), ("short\n", "a key of 5 characters")):
        keys.write_text(text)
        found = command("--llm", stub.url, *folders, "--api-key-file", keys)
        _refused(found, said)
        assert "short" not in found[1], "a key is never shown"
    _refused(command("--llm", stub.url, *folders, "--api-key-file", tmp_path / "none"), "cannot be read")


@pytest.mark.slow
def test_a_process_answers(stub: Stub, folders: tuple[str, ...], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
    words = ["--llm", stub.url, *folders, "--port", "0", "--decisions", str(tmp_path / "decisions.sqlite")]
    with subprocess.Popen(
        [sys.executable, "-m", "apportion", "serve", *words], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        try:
            said = next(line for line in process.stderr if "serves at" in line)
            found = re.search(r"serves at (http://\S+/v1)", said)
            assert found is not None
            lines = iter(process.stderr)
            assert any("startup complete" in line for line in lines)
            with openai.OpenAI(base_url=found[1], api_key="none") as client:
                answer = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Who?"}])
                assert answer.model_dump()["apportion"]["route"] == "direct"
            logged = json.loads(next(lines))
            assert (logged["path"], logged["status"]) == ("/v1/chat/completions", 200)
            assert "Who?" not in json.dumps(logged)
        finally:
            process.terminate()
            process.communicate(timeout=30)
