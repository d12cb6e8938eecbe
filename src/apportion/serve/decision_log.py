"""Decisions kept: the last ones in memory, all of them in SQLite (WAL) where a file is given.

One thread writes, in batches, so that no answer waits for a disk. A disk that is full loses rows, never answers: what
was lost is counted, and writing is tried again with the next batch. A row that cannot be written is lost alone.
Prompts and answers are kept only where asked for.
"""

import errno
import json
import os
import queue
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apportion.core.artifact import unreadable
from apportion.core.errors import ArtifactError
from apportion.serve.decision import UNTOLD, Decided, Outcome, spent_in_all

SCHEMA = 3
RECENT = 2000
BATCH = 500
QUEUED = 50_000
_COLUMNS = {
    "id": "TEXT PRIMARY KEY",
    "created": "REAL NOT NULL",
    "model": "TEXT",
    "kind": "TEXT",
    "route": "TEXT",
    "reason": "TEXT",
    "shadow": "TEXT",
    "tier": "TEXT",
    "p_rag": "REAL",
    "p_cot": "REAL",
    "token_weight": "REAL",
    "latency_weight": "REAL",
    "prompt_tokens": "INTEGER",
    "completion_tokens": "INTEGER",
    "draft_tokens": "INTEGER",
    "wasted_tokens": "INTEGER",
    "draft_reused": "INTEGER",
    "probe_ms": "REAL",
    "search_ms": "REAL",
    "draft_ms": "REAL",
    "first_ms": "REAL",
    "total_ms": "REAL",
    "status": "TEXT",
    "error": "TEXT",
    "finish": "TEXT",
    "features": "TEXT",
    "likely": "TEXT",
    "sources": "TEXT",
    "weaker": "TEXT",
    "question": "TEXT",
    "answer": "TEXT",
    "score": "REAL",
    "comment": "TEXT",
    "price": "REAL",  # since schema 2
    "measured": "INTEGER",  # since schema 3: whether the upstream told the tokens; NULL where it was not noted
}
_AS_JSON = ("features", "likely", "sources", "weaker")
_OF_THE_DISK = (sqlite3.OperationalError, OSError, MemoryError)  # may undo the whole batch; any other error is a row's
Record = dict[str, Any]


def record_of(decided: Decided, outcome: Outcome, *, keep_prompts: bool) -> Record:
    """A decision and its outcome, flat."""
    spent = spent_in_all(decided, outcome)
    return {
        "id": decided.id,
        "created": decided.created,
        "model": decided.model[:200],
        "kind": decided.kind,
        "route": decided.route,
        "reason": decided.reason,
        "shadow": decided.shadow,
        "tier": decided.tier,
        "p_rag": decided.p_rag,
        "p_cot": decided.p_cot,
        "token_weight": decided.controls.token_weight,
        "latency_weight": decided.controls.latency_weight,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "draft_tokens": sum(one.total for one in (decided.draft, decided.look) if one),
        "wasted_tokens": decided.wasted.total,
        "draft_reused": decided.draft_reused,
        "probe_ms": decided.probe_ms,
        "search_ms": decided.search_ms,
        "draft_ms": decided.draft_ms,
        "first_ms": outcome.first_ms,
        "total_ms": outcome.total_ms,
        "status": outcome.status,
        "error": outcome.error,
        "finish": outcome.finish,
        "features": dict(decided.features),
        "likely": dict(decided.likely),
        "sources": [asdict(source) for source in decided.sources],
        "weaker": [*decided.weaker, *outcome.weaker],
        "question": decided.judged if keep_prompts else None,
        "answer": outcome.text if keep_prompts else None,
        "score": None,
        "comment": None,
        "price": decided.charged(spent),
        "measured": spent.measured,
    }


@dataclass(frozen=True, slots=True)
class _Write:
    """One statement for the writing thread."""

    statement: str
    values: tuple[object, ...]


_STOP = _Write("", ())


class DecisionLog:
    """The decisions of one server.

    Args:
        path: the SQLite file, made where it is missing; None keeps the last decisions in memory only.

    Attributes:
        lost: rows that could not be written. trouble: the last reason; empty when the last batch went well.

    Raises:
        ArtifactError: the file cannot be opened, or is of another schema.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.lost, self.trouble, self._closed = path, 0, "", False
        self._recent: OrderedDict[str, Record] = OrderedDict()
        self._queue: queue.Queue[_Write] = queue.Queue(QUEUED)
        self._thread: threading.Thread | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with _opened(path) as database:
                    _prepare(database)
            except (sqlite3.Error, OSError) as error:
                said = getattr(error, "strerror", None) or str(error)
                raise ArtifactError(
                    f"--decisions {path}: cannot be opened: {said}",
                    "name a file that can be written, of this version or new; without it the last decisions are kept "
                    "in memory only",
                ) from error
            self._thread = threading.Thread(target=self._write_all, name="decision log", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what waits; what comes later is counted as lost."""
        if self._thread is not None and not self._closed:
            self._closed = True
            self._queue.put(_STOP)
            self._thread.join(timeout=30)
            self.lost += sum(one is not _STOP for one in self._queue.queue)

    def add(self, record: Record) -> None:
        """Keep a decision; returns at once."""
        self._recent[record["id"]] = record
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        if self._thread is None:
            return
        values = tuple(
            json.dumps(record[name], ensure_ascii=True) if name in _AS_JSON else record[name] for name in _COLUMNS
        )
        names, marks = ", ".join(_COLUMNS), ", ".join("?" for _ in _COLUMNS)
        self._put(_Write(f"INSERT OR REPLACE INTO decisions ({names}) VALUES ({marks})", values))

    def recent(self, count: int) -> list[Record]:
        """The last decisions, the newest first."""
        return list(reversed(self._recent.values()))[:count]

    def find(self, decision_id: str) -> Record | None:
        """A decision by id, from memory or from the file; None where it is in neither. Blocks on the disk.

        Raises:
            ArtifactError: the file cannot be read.
        """
        if decision_id in self._recent:
            return self._recent[decision_id]
        if self.path is None:
            return None
        with _readable(self.path), _opened(self.path) as database:
            row = database.execute("SELECT * FROM decisions WHERE id = ?", (decision_id,)).fetchone()
            return None if row is None else _read(row)

    def score(self, decision_id: str, score: float, comment: str | None) -> bool:
        """Note what somebody thought of an answer, the last opinion wins; False where there is no such decision."""
        found = self.find(decision_id)
        if found is None:
            return False
        found["score"], found["comment"] = score, comment
        self._put(_Write("UPDATE decisions SET score = ?, comment = ? WHERE id = ?", (score, comment, decision_id)))
        return True

    def _put(self, write: _Write) -> None:
        if self._thread is None:
            return
        try:
            if self._closed:
                raise queue.Full
            self._queue.put_nowait(write)
        except queue.Full:
            self.lost += 1

    def _write_all(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < BATCH and batch[-1] is not _STOP:
                try:
                    batch.append(self._queue.get(timeout=0.05))
                except queue.Empty:
                    break
            stop = batch[-1] is _STOP
            self._write([one for one in batch if one is not _STOP])
            if stop:
                return

    def _write(self, batch: list[_Write]) -> None:
        """Write a batch in one transaction; the thread outlives whatever comes of it."""
        assert self.path is not None
        if not batch:
            return
        lost, trouble = 0, ""
        try:
            with _opened(self.path) as database:
                if not _version(database):  # the file was moved away or deleted: a new one takes its place
                    _prepare(database)
                for one in batch:
                    try:
                        reached = database.execute(one.statement, [_storable(value) for value in one.values]).rowcount
                        said = "" if reached else "feedback to a decision that the file does not hold"
                    except _OF_THE_DISK:
                        raise
                    except Exception as error:
                        said = f"{type(error).__name__}: {error}"
                    lost, trouble = lost + bool(said), said or trouble
        except Exception as error:
            lost, trouble = len(batch), f"{type(error).__name__}: {error}"
            time.sleep(0.2)  # a full disk is not written to in a loop
        self.lost, self.trouble = self.lost + lost, trouble


def _storable(value: object) -> object:
    """A value as SQLite can hold it: lone surrogates, which UTF-8 cannot carry, as their escapes.

    >>> _storable("\\ud83d x"), _storable(1.5)
    ('\\\\ud83d x', 1.5)
    """
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def read_decisions(path: Path) -> list[Record]:
    """All decisions of a file, the oldest first.

    Raises:
        ArtifactError: it cannot be read.
    """
    with _readable(path), _opened(path) as database:
        return [_read(row) for row in database.execute("SELECT * FROM decisions ORDER BY created, id")]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the system or SQLite says of a file, in our words."""
    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # sqlite would make one
        yield
    except OSError as error:
        raise unreadable(path, error) from error
    except (sqlite3.Error, ValueError) as error:  # a value that is no JSON, where JSON is written
        raise unreadable(path, OSError(str(error))) from error


class _opened:  # noqa: N801  (reads as a verb where it is used)
    """A connection that commits, or rolls back, and is closed."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, timeout=10.0)
        self._database.row_factory = sqlite3.Row

    def __enter__(self) -> sqlite3.Connection:
        return self._database

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._database.commit()
        finally:
            self._database.close()


def _version(database: sqlite3.Connection) -> int:
    """Of the schema; 0 in a new file."""
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    version = _version(database)
    if version not in range(SCHEMA + 1):
        raise OSError(f"has schema {version}, expected {SCHEMA}")
    columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
    database.execute(f"CREATE TABLE IF NOT EXISTS decisions ({columns})")
    there = {row["name"] for row in database.execute("PRAGMA table_info(decisions)")}
    for name in _COLUMNS.keys() - there:
        database.execute(f"ALTER TABLE decisions ADD COLUMN {name} {_COLUMNS[name]}")
    database.execute("CREATE INDEX IF NOT EXISTS by_time ON decisions (created)")
    database.execute(f"PRAGMA user_version = {SCHEMA}")


def _read(row: Mapping[str, Any]) -> Record:
    there = row.keys()
    found = {name: row[name] if name in there else None for name in _COLUMNS}
    for name in _AS_JSON:
        found[name] = json.loads(found[name] or "null")
    found["draft_reused"] = bool(found["draft_reused"])
    found["measured"] = _was_measured(found)
    return found


def _was_measured(found: Record) -> bool:
    """Whether the upstream told the tokens; by what was said then, and a prompt of none, where it was not noted."""
    if found["measured"] is not None:
        return bool(found["measured"])
    said = any(said.endswith(UNTOLD) for said in found["weaker"] or ())
    return not said and bool(found["prompt_tokens"])
