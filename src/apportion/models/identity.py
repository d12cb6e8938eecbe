"""Which model a folder holds, as a short digest that does not depend on where the folder lies."""

import hashlib
from pathlib import Path

from apportion.core.artifact import sha256_file
from apportion.core.errors import InputError

SAMPLE_BYTES = 1 << 20
_SMALL = (".json", ".jinja", ".txt", ".model")


def model_identity(folder: Path) -> str:
    """`sha256:` and 16 hex digits over the configuration, the tokenizer and samples of the weights.

    Of each weight file its name, its size and 18 MiB spread evenly from its first to its last byte are read
    (all of a smaller file), so that a large model is identified in well under a second.

    Raises:
        InputError: the folder has no config.json.
    """
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: has no config.json, expected a Hugging Face model folder",
            "name a model folder, or a server as http://host:port/v1",
        )
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _SMALL and path.name != "manifest.json":
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        elif path.suffix in (".safetensors", ".bin"):
            digest.update(path.name.encode() + b"\0" + _sampled(path))
    return f"sha256:{digest.hexdigest()[:16]}"


def _sampled(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    samples = 18
    step = max(SAMPLE_BYTES, (size - SAMPLE_BYTES) // (samples - 1))
    with path.open("rb") as file:
        for at in range(0, size, step):
            file.seek(at)
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, size - SAMPLE_BYTES))
        digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()


def source_identity(model: str) -> str:
    """`model_identity` of a local folder or file; a hub name as it is given: its files are not here yet.

    >>> source_identity("owner/name")
    'owner/name'
    """
    path = Path(model)
    if path.is_dir():
        return model_identity(path)
    return f"sha256:{_sampled(path).hex()[:16]}" if path.is_file() else model


def text_identity(path: Path | None) -> str | None:
    """SHA-256 of a text file, by which a finished run knows it again; None where there is no file."""
    return sha256_file(path) if path is not None and path.is_file() else None
