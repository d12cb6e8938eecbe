"""A corpus on disk -> passages. Knows file formats; knows no index and no model.

    .jsonl, .json, .csv, .parquet
                       id (text or number; the line number when missing), title (optional), text (or contents)
    .md, .markdown     one passage per section, titled by its headings
    .txt               one document, titled by its file name
    a folder           every such file below it, in order of path

Passages without text are left out, and counted where the reader is given a `Skipped`. A text of more than
`max_chars` characters (2,000 unless told) becomes several passages with the same title and the ids `id#1`,
`id#2`, ...
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apportion.core.errors import ArtifactError, InputError
from apportion.core.lines import HALF, Offenders, holds_half, rows
from apportion.route.index.split import MAX_CHARS, markdown_sections, split_text

MIN_CHARS = 100
SHOWN_PLACES = 5
MAX_TEXT_FILE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that can be retrieved; ids are unique in a corpus."""

    id: str
    title: str
    text: str


@dataclass(slots=True)
class Skipped:
    """Passages that were left out since their text is empty: how many, and where the first few are."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < SHOWN_PLACES:
            self.places.append(place)


def read_corpus(path: Path, *, max_chars: int = MAX_CHARS, skipped: Skipped | None = None) -> Iterator[Passage]:
    """Yield the passages of a file or folder, in a stable order, one at a time.

    Problems are collected while reading and raised after the last passage, all of them at once.

    Args:
        path: a file of a kind listed above, or a folder of such files.
        max_chars: longer texts are split, at paragraphs where possible.
        skipped: told of every passage whose text is empty.

    Returns:
        Passages whose ids are unique.

    Raises:
        InputError: bad lines, texts that are missing, ids that occur twice, or no passage at all.
        ArtifactError: a file that cannot be read.
    Cost: one pass over the files; .json is held in memory whole.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "corpus.jsonl"
    >>> _ = file.write_text('{"id": 1, "contents": "Bern is a city."}\\n{"id": 2, "text": " "}')
    >>> left_out = Skipped()
    >>> [passage.id for passage in read_corpus(file, skipped=left_out)], left_out.places
    (['1'], ['corpus.jsonl, line 2'])
    """
    if max_chars < MIN_CHARS:
        raise InputError(f"--max-chars {max_chars}: expected at least {MIN_CHARS}")
    seen: set[str] = set()
    left_out = Skipped() if skipped is None else skipped
    for file, prefix in _files(path):
        offenders = Offenders(str(file), "give each passage a text, and an id that no other passage has")
        for document_id, place, title, text in READERS[file.suffix.lower()](file, prefix, offenders):
            pieces = split_text(text, max_chars)
            if not pieces:
                left_out.add(f"{prefix}, {place}")
            for number, piece in enumerate(pieces, start=1):
                passage_id = document_id if len(pieces) == 1 else f"{document_id}#{number}"
                if passage_id in seen:
                    offenders.add(place, f"id {passage_id!r} occurs twice")
                    continue
                seen.add(passage_id)
                yield Passage(passage_id, title, piece)
        offenders.raise_if_any()
    if not seen:
        empty = f", {left_out.count} passages have no text" if left_out.count else ""
        raise InputError(f"{path}: the corpus is empty{empty}", "give a corpus with at least one passage")


def _files(path: Path) -> list[tuple[Path, str]]:
    """Files to read, each with the prefix of its ids."""
    kinds = ", ".join(READERS)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
        if not found:
            raise InputError(f"{path}: holds no corpus file", f"expected files of the kinds {kinds}")
        return [(file, file.relative_to(path).as_posix()) for file in found]
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or folder", "name a corpus that exists")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: of the kind {path.suffix or '(none)'!r}", f"expected one of {kinds}")
    return [(path, path.name)]


Row = tuple[str, str, str, str]  # document id, place for messages, title, text


def _rows(file: Path, prefix: str, offenders: Offenders) -> Iterator[Row]:
    for number, place, value in rows(file, offenders):
        row = _row(value, place, f"{prefix}:{number}", offenders)
        if row:
            yield row


def _parquet(file: Path, prefix: str, offenders: Offenders) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = [name for name in ("id", "title", "text", "contents") if name in table.schema_arrow.names]
        number = 0
        for batch in table.iter_batches(batch_size=4096, columns=columns):
            for value in batch.to_pylist():
                number += 1
                row = _row(value, f"row {number}", f"{prefix}:{number}", offenders)
                if row:
                    yield row
    except (OSError, pyarrow.ArrowException) as error:
        raise ArtifactError(f"{file}: cannot be read as Parquet: {error}", "write it again") from error


def _row(value: dict[str, Any], place: str, default_id: str, offenders: Offenders) -> Row | None:
    text, title, given = value.get("text", value.get("contents")), value.get("title") or "", value.get("id")
    if not isinstance(text, str):
        offenders.add(place, "has no text (nor contents)" if text is None else "text is not a string")
    elif not isinstance(title, str):
        offenders.add(place, "title is not a string")
    elif holds_half(text, title, str(given)):
        offenders.add(place, HALF)
    elif isinstance(given, bool) or not isinstance(given, str | int | None) or given == "":
        offenders.add(place, "id is neither text nor a whole number")
    else:
        return (default_id if given is None else str(given)), place, title, text
    return None


def _markdown(file: Path, prefix: str, offenders: Offenders) -> Iterator[Row]:
    for number, (title, body) in enumerate(markdown_sections(_read_text(file), file.stem), start=1):
        yield f"{prefix}:{number}", f"section {number}", title, body


def _text(file: Path, prefix: str, offenders: Offenders) -> Iterator[Row]:
    text = _read_text(file)
    if text.strip():
        yield prefix, "the text", file.stem, text


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_TEXT_FILE_BYTES:
            raise InputError(
                f"{file}: has {file.stat().st_size} bytes, at most {MAX_TEXT_FILE_BYTES} in one text file",
                "split it, or give it as .jsonl",
            )
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8", "save it as UTF-8") from error
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read: {error.strerror}", "check its permissions") from error


READERS: dict[str, Callable[[Path, str, Offenders], Iterator[Row]]] = {
    ".jsonl": _rows,
    ".json": _rows,
    ".csv": _rows,
    ".parquet": _parquet,
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _text,
}
