"""Questions x four pipelines, with servers that fail and processes that die: nothing lost, nothing twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from apportion.core.errors import ArtifactError, ArtifactExistsError, ArtifactMismatchError, InputError, ServiceError
from apportion.core.lock import sole_writer
from apportion.route.ask.features import FEATURES
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.index.bm25 import Bm25Index
from apportion.route.index.build import build_index
from apportion.route.index.corpus import Passage
from apportion.route.llm.local import LocalLLM
from apportion.route.llm.openai import OpenAILLM
from apportion.route.profile import run
from apportion.route.profile.file import read_profile
from apportion.route.profile.questions import Question
from tests.integration.chat_server import Server, serve
from tests.integration.tiny_model import make_tiny_model

run_profile = partial(run.run_profile, unloaded=0)  # calls are counted below
CORPUS = [Passage(f"p{n}", f"City {n}", f"City {n} lies on river {n % 3} near hill {n}.") for n in range(12)]
QUESTIONS = [Question(f"q{n}", "cities", f"Which river is at City {n}", (str(n),)) for n in range(6)]


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "index"
    build_index(CORPUS, folder)
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(Server()) as running:
        running.reply = reply
        yield running


@pytest.fixture
def setup(server: Server, index_folder: Path) -> Iterator[Setup]:
    llm = OpenAILLM(server.url, concurrency=3, retries=1, backoff_s=0.001)
    yield Setup(llm, Bm25Index.open(index_folder), load_prompts(), k=3)
    llm.close()


def reply(user: str) -> str:
    """The number in the question, which ends each of these."""
    asked = re.findall(r"is at City (\d+)", user)
    return f"Answer: {asked[-1] if asked else '?'}"


def rows_of(path: Path) -> list[dict[str, object]]:
    return list(parquet.read_table(path).to_pylist())


def test_a_profile_has_every_row_feature_and_source(server: Server, setup: Setup, tmp_path: Path) -> None:
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet")
    assert (report.questions, report.rows, report.failed, report.resumed) == (6, 24, 0, 0)
    rows = rows_of(tmp_path / "p.parquet")
    assert [(row["question_id"], row["strategy"]) for row in rows] == [
        (question.id, strategy) for question in QUESTIONS for strategy in STRATEGIES
    ]
    assert FEATURES.keys() <= rows[0].keys()
    for row in rows:
        assert all(isinstance(row[name], float) for name in FEATURES)
        assert row["draft_nll"] == row["draft_nll_mean"]
        assert row["error"] is None
        assert row["completion_measured"]
        assert row["latency_ms"] > 0  # type: ignore[operator]
        number = str(row["question_id"])[1:]
        assert row["answer"] == number
        assert row["f1"] == row["em"] == 1.0  # one number in the answer, and it is the right one
    by = {row["strategy"]: row for row in rows[:4]}
    assert by["rag"]["prompt_tokens"] > by["direct"]["prompt_tokens"]  # type: ignore[operator]
    profile = read_profile(tmp_path / "p.parquet")
    assert profile.n == 6
    assert profile.complete.all()
    assert (profile.source.model, profile.source.k) == ("server:tiny", 3)
    assert profile.source.corpus == setup.retriever.corpus_digest
    assert profile.source.prompts == setup.prompts.digest
    assert len(server.users()) == 24
    passages = [user for user in server.users() if "lies on river" in user]
    assert len(passages) == 12
    assert all(user.count("lies on river") == 3 for user in passages)


def test_failures_in_the_middle_are_rows_and_the_rest_is_kept(server: Server, setup: Setup, tmp_path: Path) -> None:
    first = len(server.calls)
    server.mode = lambda number: "broken" if first + 8 <= number < first + 12 else "ok"
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet")
    assert 1 <= report.failed <= 3
    assert "not JSON" in report.failures[0]
    rows = rows_of(tmp_path / "p.parquet")
    failed = [row for row in rows if row["error"] is not None]
    assert len(rows) == 24
    assert len(failed) == report.failed
    assert all(row["f1"] is None and row["prompt_tokens"] is None for row in failed)
    assert read_profile(tmp_path / "p.parquet").complete.sum() < 6

    server.calls.clear()
    server.mode = lambda number: "ok"
    with pytest.raises(ArtifactExistsError, match="--resume"):
        run_profile(QUESTIONS, setup, tmp_path / "p.parquet")
    again = run_profile(QUESTIONS, setup, tmp_path / "p.parquet", resume=True)
    assert (again.failed, again.resumed) == (0, 24 - report.failed)
    assert len(server.users()) == report.failed
    assert read_profile(tmp_path / "p.parquet").complete.all()


def test_a_server_that_dies_stops_the_profile_and_it_resumes(server: Server, setup: Setup, tmp_path: Path) -> None:
    first = len(server.calls)
    many = [replace(question, id=f"{question.id}-{n}") for n in range(5) for question in QUESTIONS]
    server.mode = lambda number: "ok" if number < first + 10 else "500"
    with pytest.raises(ServiceError, match=r"calls in a row failed, the last with: .*HTTP 500"):
        run_profile(many, setup, tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()
    assert len(server.calls) < first + 60
    server.mode = lambda number: "ok"
    report = run_profile(many, setup, tmp_path / "p.parquet", resume=True)
    assert (report.rows, report.failed) == (120, 0)
    assert len(server.users()) == 120


def test_a_killed_profile_resumes_and_asks_nothing_twice(server: Server, index_folder: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        "\n".join(
            json.dumps({"id": q.id, "dataset": q.dataset, "question": q.question, "answers": q.answers})
            for q in QUESTIONS
        )
    )
    out = tmp_path / "p.parquet"
    command = [sys.executable, "-m", "apportion", "profile", str(questions), "--index", str(index_folder)]
    command += ["--llm", server.url, "--out", str(out), "--concurrency", "2", "--unloaded", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    server.delay_s = 0.05
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: len(server.users()) >= 9)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    settled = -1
    while settled != len(server.calls) or server.running:
        settled = len(server.calls)
        time.sleep(0.5)  # the server reads what was sent before the kill, and finishes what was in flight
    log = tmp_path / "p.parquet.log"
    logged = log.read_bytes()
    before = len(server.users())
    finished = logged.count(b'"rule"')
    assert before - 2 <= finished <= before
    log.write_bytes(logged[:-7])  # and the kill fell into the middle of a line
    finished -= b'"rule"' in logged.splitlines()[-1]

    server.delay_s = 0.0
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert (report["rows"], report["failed"], report["resumed"]) == (24, 0, finished)
    assert len(server.users()) == before + 24 - finished
    assert max(Counter(server.users()).values()) <= 4  # each question is in four prompts
    assert read_profile(out).complete.all()


def wait_for(condition, seconds: float = 120.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.005)


def test_a_log_of_another_setup_is_refused(setup: Setup, tmp_path: Path) -> None:
    run_profile(QUESTIONS[:1], setup, tmp_path / "p.parquet")
    with pytest.raises(ArtifactMismatchError, match="k: saved 3, now 2"):
        run_profile(QUESTIONS[:1], replace(setup, k=2), tmp_path / "p.parquet", resume=True)


def test_two_processes_may_not_write_one_profile(server: Server, setup: Setup, tmp_path: Path) -> None:
    run_profile(QUESTIONS[:1], setup, tmp_path / "p.parquet")
    asked = len(server.calls)
    with (
        sole_writer(tmp_path / "p.parquet.log"),
        pytest.raises(ArtifactError, match="written by another process"),
    ):
        run_profile(QUESTIONS, setup, tmp_path / "p.parquet", resume=True)
    assert len(server.calls) == asked
    assert run_profile(QUESTIONS, setup, tmp_path / "p.parquet", resume=True).failed == 0


def test_more_questions_may_be_added_on_resume(server: Server, setup: Setup, tmp_path: Path) -> None:
    run_profile(QUESTIONS[:2], setup, tmp_path / "p.parquet")
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet", resume=True)
    assert (report.rows, report.resumed) == (24, 8)
    assert len(server.users()) == 24


def test_without_logprobs_the_draft_features_are_missing_and_it_is_said(
    server: Server, index_folder: Path, tmp_path: Path
) -> None:
    server.logprobs = "omit"
    llm = OpenAILLM(server.url, backoff_s=0.001)
    setup = Setup(llm, Bm25Index.open(index_folder), load_prompts())
    report = run_profile(QUESTIONS[:2], setup, tmp_path / "p.parquet")
    llm.close()
    assert (report.has_logprobs, report.logprobs) == (False, "the server answers without them")
    assert rows_of(tmp_path / "p.parquet")[0]["draft_nll"] is None
    assert any("draft_nll" in one for one in read_profile(tmp_path / "p.parquet").dropped)


def test_questions_that_find_nothing_and_k_beyond_the_corpus(server: Server, setup: Setup, tmp_path: Path) -> None:
    questions = [Question("a", "d", "zebra?", ("x",)), Question("b", "d", "city river", ("x",))]
    report = run_profile(questions, replace(setup, k=100), tmp_path / "p.parquet")
    assert report.failed == 0
    rows = rows_of(tmp_path / "p.parquet")
    assert rows[0]["hits"] == 0.0
    assert rows[0]["nqc_top1_k10"] is None
    assert max(user.count("lies on river") for user in server.users()) == 12


def test_bad_setups_are_refused_before_any_call(server: Server, setup: Setup, tmp_path: Path) -> None:
    probes = len(server.calls)
    with pytest.raises(InputError, match="no question"):
        run_profile([], setup, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="k 0"):
        run_profile(QUESTIONS, replace(setup, k=0), tmp_path / "p.parquet")
    assert len(server.calls) == probes
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_this_process_is_profiled_in_batches(index_folder: Path, tmp_path: Path) -> None:
    good = load_prompts()
    brief = {"max_tokens": 6, "system": "", "examples": (), "kinds": {}}
    short = {name: replace(getattr(good, name), **brief) for name in ("direct", "rag", "cot", "rag_cot")}
    llm = LocalLLM.open(str(make_tiny_model(tmp_path / "m", context=160)), device="cpu", batch_size=4)
    setup = Setup(llm, Bm25Index.open(index_folder), replace(good, **short), k=2)
    long = Question("long", "d", "city " * 300, ("x",))
    report = run_profile([*QUESTIONS, long], setup, tmp_path / "p.parquet")
    assert (report.rows, report.failed) == (28, 0)
    assert report.cut_prompts >= 4
    assert f"batches of {llm.batch_size}" in report.latency
    assert "slots" in report.generation
    rows = rows_of(tmp_path / "p.parquet")
    assert all(row["draft_nll"] is not None for row in rows)
    assert all(row["prompt_tokens"] <= 154 * (1 if row["again"] is None else 2) for row in rows)  # type: ignore[operator]
    assert read_profile(tmp_path / "p.parquet").has_latency
