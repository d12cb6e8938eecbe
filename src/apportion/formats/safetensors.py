"""A safetensors file: its exact size before it is written, and writing it atomically."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import (
    Tensor,
    dtype,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
)
from torch import bfloat16 as bf16
from torch import bool as boolean

from apportion.core.artifact import disk_error, sync_folder, unreadable
from apportion.core.errors import ArtifactCorruptError, ArtifactError

CODES = {
    float64: "F64", float32: "F32", float16: "F16", bf16: "BF16", int64: "I64", int32: "I32", int8: "I8",
    uint8: "U8", boolean: "BOOL", int16: "I16", float8_e4m3fn: "F8_E4M3", float8_e5m2: "F8_E5M2",
}  # fmt: skip
METADATA = {"format": "pt"}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's place in a file: dtype and shape."""

    dtype: dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


def entry_of(tensor: Tensor) -> Entry:
    return Entry(tensor.dtype, tuple(tensor.shape))


def file_bytes(entries: Mapping[str, Entry]) -> int:
    """Exact bytes of the safetensors file that holds these tensors.

    The library writes 8 bytes of header length, a JSON header (metadata, then tensors by falling alignment and
    rising name, padded with spaces to a multiple of 8), and the tensors.
    """
    ordered = sorted(entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": METADATA}
    offset = 0
    for name, entry in ordered:
        header[name] = {
            "dtype": CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically.

    Raises:
        ArtifactError: the disk is full or refuses; nothing is left behind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=METADATA)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise ArtifactError(f"{path}: cannot be written: {error}", "free space or choose another --out") from error
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def read_entries(path: Path) -> dict[str, Entry]:
    """Names, dtypes and shapes of a file's tensors, from its header alone.

    Raises:
        ArtifactError: it cannot be read.
        ArtifactCorruptError: it has no readable header, is not as long as its header says, or holds an unknown dtype.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            header = json.loads(file.read(length)) if length < size else {}
        header.pop("__metadata__", None)
        ends = [item["data_offsets"][1] for item in header.values()]
        known = {code: own for own, code in CODES.items()}
        found = {name: Entry(known[item["dtype"]], tuple(item["shape"])) for name, item in header.items()}
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactCorruptError(
            f"{path}: is no safetensors file that can be read: {error}", "download or save it again"
        ) from error
    if not header or size != 8 + length + max(ends):
        expected = 8 + length + max(ends, default=0)
        raise ArtifactCorruptError(
            f"{path}: has {size:,} bytes, its header asks for {expected:,}: it was cut, or is still being written",
            "download or save it again",
        )
    return found
