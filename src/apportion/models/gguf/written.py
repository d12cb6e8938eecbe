"""A GGUF file is written, and read again before it gets its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apportion.core.errors import ArtifactCorruptError, ArtifactError, first_few
from apportion.formats.gguf_file import ALIGNMENT, Entries, Fields, TensorEntry, header, padded, write
from apportion.models.gguf.source import opened


def write_readable(path: Path, fields: Fields, entries: Entries, data: Callable[[str], Any]) -> int:
    """`write`, but what cannot be read again gets no name; returns the file's bytes.

    Raises:
        ArtifactError: as `write`; or the file would not be read as what was put into it.
    """

    def check(temporary: Path) -> None:
        require_readable(temporary, fields, entries, path)

    return write(path, fields, entries, data, check)


def require_readable(path: Path, fields: Fields, entries: Entries, name: Path) -> None:
    """Names, types, shapes and places of all tensors by gguf's own reader; nothing is decoded.

    Args:
        name: of the file in what is raised.

    Raises:
        ArtifactError: a file that cannot be read, or tensors other than these.
    """
    try:
        reader = opened(path)
    except ArtifactCorruptError as error:
        raise unreadable(name, error.problem.split(": ", 1)[-1]) from error
    if reader.alignment != ALIGNMENT:  # readers that are strict refuse it even where every tensor is found
        raise unreadable(name, f"aligned to {ALIGNMENT} bytes and says {reader.alignment}")
    found = {
        tensor.name: (TensorEntry(tensor.tensor_type.name, tuple(map(int, tensor.shape[::-1]))), tensor.data_offset)
        for tensor in reader.tensors
    }
    expected, at = {}, len(header(fields, entries))
    for own, entry in entries.items():
        expected[own], at = (entry, at), at + padded(entry.nbytes)
    odd = [own for own in {**expected, **found} if expected.get(own) != found.get(own)]
    if odd:
        raise unreadable(name, f"other tensors than were written: {first_few(odd)}")


def unreadable(path: Path, problem: str) -> ArtifactError:
    """A fault of ours, or of the disk: whoever ran this can do nothing about it but tell."""
    return ArtifactError(
        f"{path}: was written and cannot be read again ({problem}), so it is not kept",
        "try another disk; if it stays so, report it with the metadata of MODEL",
    )
