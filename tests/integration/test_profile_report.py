"""What a profile keeps of each answer, says of the first questions, and measures with nothing else running."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from apportion.core.errors import ServiceError
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.index import Bm25Index, Passage, build_index
from apportion.route.llm.openai import OpenAILLM
from apportion.route.profile import Preflight, Question, read_profile, run_profile
from tests.integration.chat_server import Server, serve

QUESTIONS = [Question(f"q{n}", "cities", f"Which river is at City {n}", (f"{n % 3}",)) for n in range(12)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Bm25Index:
    passages = [Passage(f"p{n}", f"City {n}", f"City {n} lies on river {n % 3}.") for n in range(12)]
    return build_index(passages, tmp_path_factory.mktemp("corpus") / "index")


def reasoned(user: str) -> str:
    number = re.findall(r"is at City (\d+)", user)
    if not number:
        return "Hello"
    answer = f"Answer: {int(number[-1]) % 3}"
    return f"The city lies on a river.\n{answer}" if "Reason first" in user else answer


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(Server(reply=reasoned)) as running:
        yield running


@pytest.fixture
def setup(server: Server, index: Bm25Index) -> Iterator[Setup]:
    llm = OpenAILLM(server.url, concurrency=4, retries=0, backoff_s=0.001)
    yield Setup(llm, index, load_prompts(), k=2)
    llm.close()


def rows_of(path: Path) -> list[dict[str, object]]:
    return list(parquet.read_table(path).to_pylist())


def test_every_answer_is_kept_with_how_it_came_about(setup: Setup, tmp_path: Path) -> None:
    run_profile(QUESTIONS, setup, tmp_path / "p.parquet", unloaded=0)
    rows = rows_of(tmp_path / "p.parquet")
    by = {str(row["strategy"]): row for row in rows[:4]}
    assert by["cot"]["completion"] == "The city lies on a river.\nAnswer: 0"
    for name, row in by.items():
        assert (row["finish"], row["rule"], row["kind"], row["asked_as"]) == ("stop", "pattern", "short", name)
        assert len(row["passages"]) == (2 if "rag" in name else 0)  # type: ignore[arg-type]
        assert row["loaded_ms"] == row["latency_ms"]
        assert row["latency_measured"]
        assert row["cut_tokens"] == 0
    assert by["rag"]["passages"][0] == "p0"  # type: ignore[index]


def test_a_good_start_has_no_warning_and_a_bad_one_is_told_before_the_long_run(
    server: Server, setup: Setup, tmp_path: Path
) -> None:
    seen: list[tuple[Preflight, int]] = []

    def tell(found: Preflight) -> None:
        seen.append((found, len(server.users())))

    run_profile(QUESTIONS, setup, tmp_path / "good.parquet", unloaded=0, on_preflight=tell)
    assert seen[0][0].warnings == ()
    assert seen[0][1] == 32  # eight questions, four ways
    server.reply = lambda user: "Answer: hm" if "Reason first" in user else "no idea what to say"
    run_profile(QUESTIONS, setup, tmp_path / "bad.parquet", unloaded=0, on_preflight=tell)
    found = seen[1][0]
    assert (found.questions, found.shares["cot"].answer_first, found.shares["direct"].zero) == (8, 1.0, 1.0)
    assert any("cot: 8 of 8 answers give the answer before reasoning" in one for one in found.warnings)
    assert any("no answer of any pipeline earned a point" in one for one in found.warnings)
    assert any("Answer: hm" in one for one in found.samples)


def test_latency_is_that_of_calls_made_alone(server: Server, setup: Setup, tmp_path: Path) -> None:
    server.delay_s = 0.02
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet", unloaded=3)
    assert "estimated from 12 answers measured one at a time" in report.latency
    assert read_profile(tmp_path / "p.parquet").source.latency == report.latency
    rows = rows_of(tmp_path / "p.parquet")
    measured = [row for row in rows if row["latency_measured"]]
    assert len(measured) == 12
    assert {row["question_id"] for row in measured} == {"q0", "q4", "q8"}
    assert all(row["latency_ms"] >= 20 for row in rows)  # type: ignore[operator]
    again = len(server.users())
    run_profile(QUESTIONS, setup, tmp_path / "p.parquet", unloaded=3, resume=True)
    assert len(server.users()) == again  # nothing is timed twice


def test_a_search_that_finds_nothing_is_asked_without_passages_and_counted(setup: Setup, tmp_path: Path) -> None:
    nothing = [Question("n", "d", "Zzyzx?", ("x",)), *QUESTIONS[:2]]
    report = run_profile(nothing, setup, tmp_path / "p.parquet", unloaded=0)
    assert (report.pipelines["rag"].no_passage, report.pipelines["rag+cot"].no_passage) == (1, 1)
    rows = rows_of(tmp_path / "p.parquet")
    assert [row["asked_as"] for row in rows[:4]] == ["direct", "direct", "cot", "cot"]
    assert rows[1]["prompt_tokens"] == rows[0]["prompt_tokens"]


def test_answers_without_log_probabilities_are_counted_and_lose_only_their_own(
    server: Server, setup: Setup, tmp_path: Path
) -> None:
    count = len(server.calls)
    server.mode = lambda number: "ok"

    server.without = lambda user: "City 3" in user and "lies on" not in user
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet", unloaded=0)
    assert len(server.calls) > count
    assert report.has_logprobs
    assert 1 <= report.pipelines["direct"].no_logprobs <= 3
    profile = read_profile(tmp_path / "p.parquet")
    assert "draft_nll_mean" in profile.feature_names


def test_when_every_answer_fails_nothing_is_written(server: Server, setup: Setup, tmp_path: Path) -> None:
    server.mode = lambda number: "500"
    with pytest.raises(ServiceError, match=r"calls in a row failed|all \d+ answers failed"):
        run_profile(QUESTIONS[:2], setup, tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()


def test_numbers_written_as_text_are_refused_by_column(setup: Setup, tmp_path: Path) -> None:
    import pyarrow

    from apportion.core.errors import InputError

    run_profile(QUESTIONS[:2], setup, tmp_path / "p.parquet", unloaded=0)
    table = parquet.read_table(tmp_path / "p.parquet")
    at = table.column_names.index("f1")
    parquet.write_table(table.set_column(at, "f1", table["f1"].cast(pyarrow.string())), tmp_path / "text.parquet")
    with pytest.raises(InputError, match="column f1: holds '1', expected numbers"):
        read_profile(tmp_path / "text.parquet")
