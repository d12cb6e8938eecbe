"""`apportion serve` as an operator starts it: a real process that answers, and refusals of one line before it does."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from apportion.cli import main
from apportion.route.router.file import save_router
from apportion.serve.run import listen
from tests.integration.upstream_stub import Stub
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
    ],
)
def test_bad_values_are_named(
    command: Command, stub: Stub, folders: tuple[str, ...], given: tuple[object, ...], said: str
) -> None:
    _refused(command("--llm", stub.url, *folders, *given), said)


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
