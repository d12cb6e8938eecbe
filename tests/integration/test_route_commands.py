"""The commands index, profile and ask as a user calls them: results, JSON, and errors of one line."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apportion.cli import main
from apportion.route.profile.file import read_profile
from apportion.route.router.file import save_router
from apportion.route.router.plan import TrainingPlan
from apportion.route.router.train import train_router
from tests.integration.chat_server import KEY, Server, serve

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["apportion", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": "ch", "title": "Bern", "text": "capital of Switzerland"}, {"id": "fr", "text": "Paris, France"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(Server()) as running:
        yield running


def test_index_add_and_delete(command: Command, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    code, printed, _ = command("index", corpus, "--out", out)
    assert code == 0
    assert "2 passages" in printed
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "jp", "text": "Tokyo, Japan"}')
    _, printed, _ = command("index", more, "--out", out, "--add", "--json")
    assert json.loads(printed)["passages"] == 3
    _, printed, _ = command("index", "--out", out, "--delete", "jp", "--delete", "fr", "--json")
    assert json.loads(printed)["passages"] == 1


def test_errors_are_one_line_and_a_remedy(command: Command, corpus: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": 1}\nnope\n')
    code, printed, error = command("index", bad, "--out", tmp_path / "i")
    assert (code, printed) == (1, "")
    assert error.startswith("error: ")
    assert "line 1" in error
    assert "line 2" in error
    assert "remedy:" in error
    assert "Traceback" not in error
    code, _, error = command("index", "--out", tmp_path / "i")
    assert code == 1
    assert "no CORPUS" in error
    code, _, error = command("index", corpus, "--out", tmp_path / "i")
    assert code == 0, "a failed index leaves nothing that blocks the next"


def test_profile_prints_its_report_and_no_key(
    command: Command, server: Server, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPORTION_API_KEY", KEY)
    command("index", corpus, "--out", tmp_path / "index")
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "capital of Switzerland Bern", "answers": ["Bern"]}\n')
    shared = ["profile", questions, "--index", tmp_path / "index", "--llm", server.url, "--out", tmp_path / "p.parquet"]
    code, printed, _ = command(*shared, "--json")
    assert code == 0
    assert json.loads(printed)["rows"] == 4
    code, _, error = command(*shared)
    assert code == 1
    assert "--resume" in error
    code, printed, _ = command(*shared, "--resume")
    assert code == 0
    assert "4 from before, 0 failed" in printed
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_questions_without_answers_are_refused_before_the_model_is_opened(command: Command, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        '{"question": "a?"}\n{"question": "b?", "answers": ["x"]}\n{"question": "c?", "answers": []}\n'
    )
    arguments = ["profile", questions, "--index", tmp_path / "none", "--llm", "http://127.0.0.1:9/v1"]
    code, _, error = command(*arguments, "--out", tmp_path / "p.parquet")
    assert code == 1
    assert "line 1: no answers; line 3: no answers" in error


def test_a_router_trained_on_a_profile_answers_and_explains(
    command: Command, server: Server, corpus: Path, tmp_path: Path
) -> None:
    """Half of the questions need reasoning (the server gets them wrong without the words step by step)."""

    def reply(user: str) -> str:
        easy = "easy" in user
        return "Answer: Bern" if easy or server.calls[-1]["body"]["messages"][0]["content"].startswith("Th") else "no"

    server.reply = reply
    command("index", corpus, "--out", tmp_path / "index")
    rows = [{"question": f"{'easy' if n % 2 else 'a hard one'} {n}?", "answers": ["Bern"]} for n in range(24)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared = ["--index", tmp_path / "index", "--llm", server.url]
    profiled = command("profile", tmp_path / "q.jsonl", *shared, "--out", tmp_path / "p.parquet", "--concurrency", 1)
    assert profiled[0] == 0, profiled
    plan = TrainingPlan(folds=3, seeds=1, steps=40)
    trained = train_router(read_profile(tmp_path / "p.parquet"), plan, caution=-1e9)
    save_router(tmp_path / "router", trained.router, {})
    asked = ["ask", "easy 99?", "--router", tmp_path / "router", *shared, "--token-weight", "0.3"]
    code, printed, error = command(*asked, "--json")
    assert code == 0, error
    found = json.loads(printed)
    assert found["strategy"] in ("direct", "rag", "cot", "rag+cot")
    assert found["tokens"] == sum(call["prompt_tokens"] + call["completion_tokens"] for call in found["calls"])
    assert found["not_compared"] == []
    code, printed, _ = command(*asked, "--explain")
    assert "strategy " in printed
    assert "cost " in printed
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "something else"}')
    command("index", other, "--out", tmp_path / "other")
    code, _, error = command(*asked, "--index", tmp_path / "other")
    assert code == 1
    assert "router: was trained on another corpus" in error


@pytest.mark.parametrize("name", ["index", "profile", "ask"])
def test_every_help_has_an_example(command: Command, name: str) -> None:
    code, printed, _ = command(name, "--help")
    assert code == 0
    assert f"Example: apportion {name}" in printed


def test_weights_below_zero_are_refused(command: Command, tmp_path: Path) -> None:
    arguments = ["ask", "Who?", "--router", tmp_path, "--index", tmp_path, "--llm", "x", "--token-weight", "-1"]
    code, _, error = command(*arguments)
    assert code == 1
    assert "token weight -1.0: expected a finite number from 0" in error


def test_help_needs_no_heavy_import() -> None:
    """Torch, transformers, pyarrow, tantivy and openai stay out, so help comes in well under a second."""
    check = (
        "import sys; from apportion.cli import bits, route; "
        "print([m for m in ('torch', 'transformers', 'pyarrow', 'tantivy', 'openai', 'numpy') if m in sys.modules])"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
