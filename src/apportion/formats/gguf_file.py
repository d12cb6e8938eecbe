"""A GGUF file: its exact size before it is written, and writing it atomically. Knows no model.

    magic, version, counts | metadata | names, shapes, types and offsets | padding | data of each tensor, padded

Everything before the data has a size that does not depend on the types chosen, so a whole file's bytes are a sum.
Layout: gguf's specification, version 3; values little-endian, data aligned to 32 bytes.
"""

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from apportion.core.artifact import disk_error, sync_folder
from apportion.formats.ggml import gguf, matrix_bytes

ALIGNMENT = 32
VERSION = 3
CODES = {
    "UINT8": "<B", "INT8": "<b", "UINT16": "<H", "INT16": "<h", "UINT32": "<I", "INT32": "<i", "FLOAT32": "<f",
    "BOOL": "<?", "UINT64": "<Q", "INT64": "<q", "FLOAT64": "<d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata value: its gguf type by name, and for arrays the type of their items."""

    kind: str
    value: Any
    items: str = ""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor's place: its type and its shape as torch has it (rows first; the file stores it reversed)."""

    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return matrix_bytes(self.type, rows, self.shape[-1])


Fields = Mapping[str, Field]
Entries = Mapping[str, TensorEntry]


def padded(size: int) -> int:
    """A size rounded up to the alignment.

    >>> padded(1), padded(64)
    (32, 64)
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


def packed_string(text: str) -> bytes:
    data = text.encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(data)) + data


def packed_value(kind: str, value: Any) -> bytes:
    """One scalar."""
    return packed_string(value) if kind == "STRING" else struct.pack(CODES[kind], value)


def packed_field(field: Field) -> bytes:
    """A value with its type."""
    kinds = gguf().GGUFValueType
    head = struct.pack("<I", int(kinds[field.kind]))
    if field.kind != "ARRAY":
        return head + packed_value(field.kind, field.value)
    count = struct.pack("<IQ", int(kinds[field.items]), len(field.value))
    return head + count + b"".join(packed_value(field.items, item) for item in field.value)


def header(fields: Fields, entries: Entries) -> bytes:
    """Everything before the first tensor's data, padding included."""
    types = gguf().GGMLQuantizationType
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(entries), len(fields))]
    parts += [packed_string(name) + packed_field(field) for name, field in fields.items()]
    offset = 0
    for name, entry in entries.items():
        dims = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
        parts.append(packed_string(name) + dims + struct.pack("<IQ", int(types[entry.type]), offset))
        offset += padded(entry.nbytes)
    data = b"".join(parts)
    return data + bytes(padded(len(data)) - len(data))


def file_bytes(fields: Fields, entries: Entries) -> int:
    """Exact bytes of the file that holds these.

    >>> file_bytes({"general.architecture": Field("STRING", "llama")}, {"x": TensorEntry("Q8_0", (3, 32))})
    256
    """
    return len(header(fields, entries)) + sum(padded(entry.nbytes) for entry in entries.values())


def write(
    path: Path,
    fields: Fields,
    entries: Entries,
    data: Callable[[str], Any],
    check: Callable[[Path], None] = lambda _: None,
) -> int:
    """Write a file so that a reader sees all of it or none of it, one tensor in memory at a time.

    Args:
        data: a tensor's name -> its contiguous bytes (anything with a buffer).
        check: of the whole file before it gets its name; what it raises leaves nothing behind.

    Returns:
        The file's bytes, which are `file_bytes`.

    Raises:
        ArtifactError: the disk is full or refuses; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(header(fields, entries))
            for name, entry in entries.items():
                put(file, name, entry, data(name))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        assert size == file_bytes(fields, entries), "the file's size is not the predicted one"
        check(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def put(file: BinaryIO, name: str, entry: TensorEntry, data: Any) -> None:
    """One tensor and its padding."""
    view = memoryview(data).cast("B")
    assert view.nbytes == entry.nbytes, f"{name}: {view.nbytes} bytes, its type and shape say {entry.nbytes}"
    file.write(view)
    file.write(bytes(padded(view.nbytes) - view.nbytes))
