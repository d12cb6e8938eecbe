"""Rows of JSON lines, JSON or CSV, read with every offending one named at once, in one bounded error."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apportion.core.errors import ArtifactError, InputError

SHOWN = 20
MAX_LINE_BYTES = 16 << 20


_LONE = re.compile(r"[\ud800-\udfff]")
HALF = "holds half a character (a lone surrogate)"


def holds_half(*texts: str) -> bool:
    """Whether a text cannot be written as UTF-8: `\\ud83d` in JSON makes one, or bytes that are no UTF-8 in a shell.

    >>> holds_half("Zürich"), holds_half("x", "\\ud83d")
    (False, True)
    """
    return any(_LONE.search(text) for text in texts)


class Offenders:
    """Collects what is wrong with an input, to be raised as one error; keeps 20 and counts all.

    >>> found = Offenders("corpus.jsonl", "each line needs text")
    >>> found.raise_if_any()
    >>> found.add("line 3", "no text")
    >>> found.raise_if_any()
    Traceback (most recent call last):
    ...
    apportion.core.errors.InputError: corpus.jsonl: 1 problem: line 3: no text
      remedy: each line needs text
    """

    def __init__(self, where: str, remedy: str) -> None:
        self.where, self.remedy = where, remedy
        self.shown: list[str] = []
        self.count = 0

    def add(self, place: str, problem: str) -> None:
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{place}: {problem}")

    def raise_if_any(self) -> None:
        if not self.count:
            return
        more = f"; and {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
        noun = "problem" if self.count == 1 else "problems"
        raise InputError(f"{self.where}: {self.count} {noun}: {'; '.join(self.shown)}{more}", self.remedy)


def rows(path: Path, offenders: Offenders) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number (from 1), place for messages and content of each row of a file, by its kind.

    .csv has its keys in the first line; .json is an array of objects (or JSON lines after all); others are JSON lines.

    Raises:
        ArtifactError: the file cannot be opened.
    """
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from _csv_rows(path, offenders)
    elif kind == ".json" and (array := _json_array(path)) is not None:
        for number, value in enumerate(array, start=1):
            if isinstance(value, dict):
                yield number, f"item {number}", value
            else:
                offenders.add(f"item {number}", f"is a JSON {type(value).__name__}, expected an object")
    else:
        yield from ((number, f"line {number}", value) for number, value in json_lines(path, offenders))


def _json_array(path: Path) -> list[Any] | None:
    """The array that a file holds; None where it holds something else, to be read as lines."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", "name a file that exists") from error
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _csv_rows(path: Path, offenders: Offenders) -> Iterator[tuple[int, str, dict[str, Any]]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for number, value in enumerate(reader, start=1):
                place = f"line {reader.line_num}"
                if None in value or None in value.values():
                    offenders.add(place, f"has not the {len(reader.fieldnames or ())} cells of the first line")
                else:
                    yield number, place, value
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", "name a file that exists") from error
    except (UnicodeDecodeError, csv.Error) as error:
        offenders.add("the file", f"is no CSV in UTF-8: {error}")


def json_lines(path: Path, offenders: Offenders) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a JSON-lines file; empty lines are skipped, bad ones collected.

    Raises:
        ArtifactError: the file cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", "name a file that exists") from error
    with file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                offenders.add(f"line {number}", f"longer than {MAX_LINE_BYTES} bytes")
                _skip_rest(file, line)
                continue
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                offenders.add(f"line {number}", "is not JSON in UTF-8")
                continue
            if isinstance(value, dict):
                yield number, value
            else:
                offenders.add(f"line {number}", f"is a JSON {type(value).__name__}, expected an object")


def _skip_rest(file: Any, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)
