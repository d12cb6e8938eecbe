"""An append-only log of JSON records that survives a kill at any moment.

A line on disk:   <crc32 of the text, 8 hex digits> <the record as compact JSON>\\n
The first line is the header: what the records were made from. A last line without its newline was being
written when the process died: it is cut off and its record made again. A complete line whose checksum is
wrong means the file was changed since, and is refused with its number.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from apportion.core.artifact import disk_error, plain, require_same, sync_folder, unreadable
from apportion.core.errors import ArtifactCorruptError, ArtifactExistsError

Record = dict[str, Any]


def encode(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(plain(record), separators=(",", ":"), ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes, number: int, path: Path) -> Record:
    try:
        checksum, text = line[:8], line[9:-1]
        if int(checksum, 16) == zlib.crc32(text):
            record = json.loads(text)
            if isinstance(record, dict):
                return record
    except ValueError:
        pass
    raise ArtifactCorruptError(
        f"{path}: line {number} does not match its checksum",
        "measure again into another --out; a log is never edited by hand",
    )


def read_log(path: Path) -> tuple[Record, list[Record], int]:
    """Header, complete records, and the length in bytes of what is whole.

    Raises:
        ArtifactError: no such file, or unreadable.
        ArtifactCorruptError: a complete line does not match its checksum (the line is named).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines(keepends=True)
    records = [decode(line, number, path) for number, line in enumerate(lines, start=1)]
    return (records[0] if records else {}), records[1:], whole


class AppendLog:
    """Opens or continues a log whose header equals `header`.

    Args:
        path: the log file.
        header: digests and settings of what makes the records; a log with another header is refused.
        resume: continue an existing log; otherwise its existence is an error.

    Attributes:
        records: the records that were already there.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.records: list[Record] = []
        whole = 0
        if path.exists():
            if not resume:
                raise ArtifactExistsError(f"{path}: exists", "choose another --out, or continue it with --resume")
            saved, self.records, whole = read_log(path)
            if saved:
                require_same(saved, header, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._file.truncate(whole)
            if whole == 0:
                self._write(encode(header))
                sync_folder(path.parent)
        except OSError as error:
            raise disk_error(path, error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; when this returns, a kill of the process cannot lose it."""
        try:
            self._write(encode(record))
        except OSError as error:
            raise disk_error(self.path, error) from error

    def _write(self, line: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size
        written = self._file.write(line)
        if written != len(line):
            self._file.truncate(start)
            raise OSError(28, "no space left for a whole record")

    def close(self) -> None:
        try:
            with self._file:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
