"""The decision log against rows that cannot be written: each is kept or counted, and takes no other along."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apportion.core.errors import ArtifactError
from apportion.serve.controls import Controls
from apportion.serve.decision import Decided, Outcome, Spent
from apportion.serve.decision_log import DecisionLog, read_decisions, record_of

LONE = "\ud83d x"
HUGE = 1 << 63


def _record(name: str, **changed: Any) -> dict[str, Any]:
    decided = Decided(name, time.time(), "auto", Controls(), "question", "direct", "router", "Who?")
    return {**record_of(decided, Outcome(spent=Spent(1, 1)), keep_prompts=True), **changed}


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.mark.parametrize("column", ["question", "answer", "model", "error", "finish"])
def test_text_that_utf8_cannot_carry_is_kept_escaped(tmp_path: Path, column: str) -> None:
    log = DecisionLog(tmp_path / "d.sqlite")
    log.add(_record("odd", **{column: LONE}))
    log.close()
    assert [one[column] for one in read_decisions(tmp_path / "d.sqlite")] == ["\\ud83d x"]
    assert (log.lost, log.trouble) == (0, "")


@pytest.mark.parametrize(
    "odd", [{"prompt_tokens": HUGE}, {"completion_tokens": -HUGE - 1}, {"score": object()}, {"created": None}]
)
def test_a_row_that_cannot_be_written_is_lost_alone_and_counted(tmp_path: Path, odd: dict[str, Any]) -> None:
    log = DecisionLog(tmp_path / "d.sqlite")
    for record in (_record("before"), _record("odd", **odd)):
        log.add(record)
    _until(lambda: log.lost == 1)
    assert log.trouble, "it is said at /ready"
    for record in (_record("after"), _record("later")):
        log.add(record)
    _until(lambda: not log.trouble)
    log.close()
    assert {one["id"] for one in read_decisions(tmp_path / "d.sqlite")} == {"before", "after", "later"}
    assert log.lost == 1


def test_feedback_to_a_lost_row_is_lost_too(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d.sqlite")
    log.add(_record("odd", prompt_tokens=HUGE))
    assert log.score("odd", 1.0, LONE), "it is in memory"
    log.close()
    assert log.lost == 2


def test_the_thread_outlives_whatever_a_write_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = DecisionLog(tmp_path / "d.sqlite")
    with monkeypatch.context() as broken:
        broken.setattr(sqlite3, "connect", lambda *_, **__: 1 / 0)
        log.add(_record("one"))
        _until(lambda: log.lost == 1)
    assert "ZeroDivisionError" in log.trouble
    log.add(_record("two"))
    log.close()
    assert [one["id"] for one in read_decisions(tmp_path / "d.sqlite")] == ["two"]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "d.sqlite", tmp_path / "d-1.sqlite"
    log = DecisionLog(path)
    log.add(_record("before"))
    _until(lambda: bool(read_decisions(path)))
    path.rename(moved)
    log.add(_record("after"))
    log.close()
    assert (log.lost, log.trouble) == (0, "")
    assert [[one["id"] for one in read_decisions(file)] for file in (moved, path)] == [["before"], ["after"]]


def test_what_comes_after_the_end_is_counted(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d.sqlite")
    log.close()
    log.add(_record("late"))
    log.close()
    assert log.lost == 1


def test_a_file_that_is_none_is_refused_in_words_of_this_option(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, " * 100)
    for path in (tmp_path, tmp_path / "text", tmp_path / "text" / "d.sqlite"):
        with pytest.raises(ArtifactError, match=r"--decisions .*cannot be opened") as error:
            DecisionLog(path)
        assert "--out" not in str(error.value)
        assert "--resume" not in str(error.value)


def test_a_row_that_somebody_changed_to_no_json_is_said_to_be_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite"
    log = DecisionLog(path)
    log.add(_record("one"))
    log.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE decisions SET features = 'no json'")
    for read in (lambda: read_decisions(path), lambda: DecisionLog(path).find("one")):
        with pytest.raises(ArtifactError, match="cannot be read: Expecting value"):
            read()
