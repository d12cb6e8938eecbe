"""A file of text -> its documents: plain texts and conversations, from the forms in which people have them.

    .txt, .md, anything else   one text                     .jsonl           one object a line
    .json                      an array of objects          .csv, .tsv       a column
    .parquet                   a column                     any of them .gz

An object, a row, holds its text in the field `text` (or is a string itself), or a conversation in `messages`
(`role`, `content`) or `conversations` (`from`, `value`).
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from apportion.core.errors import InputError
from apportion.core.lines import HALF, holds_half

MAX_TEXT_BYTES = 1 << 30
FORMS = "give UTF-8 text, or .jsonl, .json, .csv, .tsv or .parquet with a field 'text' or 'messages' (each may be .gz)"
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
BROKEN = object()  # what a line is that is no JSON
Conversation = tuple[dict[str, str], ...]
"""Messages with `role` and `content`."""

Document = str | Conversation


def read_documents(path: Path) -> list[Document]:
    """The documents of a file, in its order.

    Raises:
        InputError: missing, unreadable, too large, not UTF-8, binary, or places without a text (all of them named).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     file = Path(home) / "chat.jsonl"
    ...     _ = file.write_text('{"text": "one"}\\n{"messages": [{"role": "user", "content": "two"}]}\\n')
    ...     read_documents(file)
    ['one', ({'role': 'user', 'content': 'two'},)]
    """
    data = read_bytes(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".parquet":
        numbered = ((f"row {number}", row) for number, row in enumerate(parquet_rows(data, path), start=1))
        return from_places(numbered, path, "columns")
    content = decode(data, path)
    if kind in (".jsonl", ".ndjson"):
        return from_places(json_lines(content), path, "one JSON object per line")
    if kind == ".json":
        return from_places(json_array(content, path), path, "an array of objects")
    if kind in (".csv", ".tsv"):
        return from_places(table_rows(content, path, "\t" if kind == ".tsv" else ","), path, "a header row")
    return [content]


def read_bytes(path: Path) -> bytes:
    """What a file holds, unpacked.

    Raises:
        InputError: missing, too large, unreadable or a broken archive.
    """
    if not path.is_file():
        raise InputError(f"text {path}: {'is a folder' if path.is_dir() else 'no such file'}", FORMS)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(f"text {path}: {path.stat().st_size:,} bytes, at most {MAX_TEXT_BYTES:,} are read", "cut it")
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            data: bytes = file.read(MAX_TEXT_BYTES + 1)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"text {path}: is no whole gzip archive: {error}", "pack it again") from error
    except OSError as error:
        raise InputError(f"text {path}: cannot be read: {error.strerror}", "check its permissions") from error
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"text {path}: unpacks to more than {MAX_TEXT_BYTES:,} bytes", "cut it")
    return data


def decode(data: bytes, path: Path) -> str:
    """UTF-8, with or without its mark.

    Raises:
        InputError: another encoding, or no text at all.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"text {path}: is UTF-16 text", "convert it to UTF-8, e.g. iconv -f utf-16 -t utf-8")
    if b"\0" in data:
        raise InputError(f"text {path}: holds bytes of zero, so it is no text", FORMS)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"text {path}: is not UTF-8 text ({error.reason})", "convert it to UTF-8") from error


Places = Iterable[tuple[str, Any]]


def json_lines(content: str) -> Places:
    """Each line's value with its number; BROKEN where a line is no JSON."""
    # not splitlines: it also cuts at U+2028 and others, which JSON allows inside a string
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", parsed(line)


def json_array(content: str, path: Path) -> Places:
    """Each element with its number; a single object is an array of one.

    Raises:
        InputError: it is no JSON.
    """
    value = parsed(content)
    if value is BROKEN:
        lines = content.strip().split("\n")
        remedy = "name it .jsonl" if len(lines) > 1 and parsed(lines[0]) is not BROKEN else "write it as JSON again"
        raise InputError(f"text {path}: is no JSON", remedy)
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"element {number}", item


def parsed(text: str) -> Any:
    """A JSON value; BROKEN where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return BROKEN


def table_rows(content: str, path: Path, delimiter: str) -> Places:
    """Each row with its number, its cells by the names of the first row.

    Raises:
        InputError: it is no such table.
    """
    csv.field_size_limit(MAX_TEXT_BYTES)  # of a cell; the library's own is 128 KiB
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter), start=1):
            yield f"row {number}", row
    except csv.Error as error:
        raise InputError(f"text {path}: is no table of cells: {error}", FORMS) from error


def parquet_rows(data: bytes, path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file.

    Raises:
        InputError: it is none.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"text {path}: is no Parquet file: {error}", FORMS) from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def from_places(places: Places, path: Path, shape: str) -> list[Document]:
    """The documents of all places, or one error that names those without.

    Raises:
        InputError: naming the first of them.
    """
    found: list[Document] = []
    bad: dict[str, list[str]] = {}
    for place, value in places:
        try:
            if value is BROKEN:
                raise InputError("is no JSON (cut?)")
            found.append(document(value))
        except InputError as error:
            bad.setdefault(error.problem, []).append(place)
    if bad:
        told = "; ".join(f"{listed(where)}: {problem}" for problem, where in bad.items())
        raise InputError(f"text {path}: {told}", f"{shape}, with a field 'text' or 'messages'")
    return found


def listed(places: list[str]) -> str:
    """The first few of places of one kind.

    >>> listed(["line 3", "line 5"])
    'line 3, 5'
    """
    more = f" and {len(places) - 10} more" if len(places) > 10 else ""
    return f"{places[0].split()[0]} {', '.join(place.split()[1] for place in places[:10])}{more}"


def document(value: Any) -> Document:
    """The text or conversation of one place.

    Raises:
        InputError: it has neither, or one that no tokenizer takes.
    """
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            return whole(value["text"])
        for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
            if isinstance(value.get(key), list) and value[key]:
                return conversation(value[key], role, content)
    raise InputError("no string field 'text', and no 'messages'")


def whole(text: str) -> str:
    """A text of whole characters.

    Raises:
        InputError: it holds half of one.
    """
    if holds_half(text):
        raise InputError(HALF)
    return text


def conversation(messages: list[Any], role: str, content: str) -> Conversation:
    """Messages in one form, whatever they call their fields.

    Raises:
        InputError: a message has no role or no text.
    """
    found = []
    for message in messages:
        said = message if isinstance(message, dict) else {}
        who, what = said.get(role), said.get(content)
        if not isinstance(who, str) or not isinstance(what, str):
            raise InputError(f"a message without {role} and {content}")
        found.append({"role": ROLES.get(who, who), "content": whole(what)})
    return tuple(found)


def join(documents: list[Document], render: Callable[[Conversation], str]) -> str:
    """All documents as one text, with blank lines between plain ones; a template ends its conversations itself.

    >>> join(["one", "two", ({"role": "user", "content": "three"},), "four"], lambda messages: "<three>")
    'one\\n\\ntwo<three>four'
    """
    parts: list[str] = []
    for before, item in zip([None, *documents], documents, strict=False):
        if isinstance(before, str) and isinstance(item, str):
            parts.append("\n\n")
        parts.append(item if isinstance(item, str) else render(item))
    return "".join(parts)
