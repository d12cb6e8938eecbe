"""Which model a folder holds, as a short digest that does not depend on where the folder lies."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from apportion.core.artifact import RUN, read_json, sha256_file
from apportion.core.errors import ArtifactError, InputError

SAMPLE_BYTES = 1 << 20
WHOLE_BYTES = 4 << 30  # of weights that are read to the last byte: seconds
WHOLE, SAMPLED = "sha256-whole:", "sha256-sampled:"
_SMALL = (".json", ".jinja", ".txt", ".model")
_WEIGHTS = (".safetensors", ".bin")


def model_identity(folder: Path, read: Callable[[Path], bytes] | None = None) -> str:
    """`sha256:` and 16 hex digits over the configuration, the tokenizer and samples of the weights.

    Of each weight file its name, its size and 18 MiB spread evenly from its first to its last byte are read
    (all of a smaller file), so that a large model is identified in well under a second.

    Args:
        read: the digest of a weight file, in place of that of its samples.

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
        elif path.suffix in _WEIGHTS:
            digest.update(path.name.encode() + b"\0" + (read or _sampled)(path))
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


def run_identity(model: str, out: Path) -> str:
    """Which model a run is made of, by which `--resume` knows it again; a hub name as it is given.

    Every byte of up to 4 GiB of weights (`sha256-whole:`), samples of more (`sha256-sampled:`): a change between two
    samples of a large file is not seen. A run that was begun before this was told apart is compared by samples, as it
    recorded them.

    Args:
        out: the run's folder, whether or not it is there.
    """
    path = Path(model)
    if not path.exists() or _recorded(out).startswith("sha256:"):
        return source_identity(model)
    files = [item for item in path.iterdir() if item.suffix in _WEIGHTS] if path.is_dir() else [path]
    if sum(item.stat().st_size for item in files) > WHOLE_BYTES:
        return source_identity(model).replace("sha256:", SAMPLED, 1)
    whole = model_identity(path, _whole).removeprefix("sha256:") if path.is_dir() else sha256_file(path)[:16]
    return f"{WHOLE}{whole}"


def _recorded(out: Path) -> str:
    """What a run's record says of its model; empty where there is none."""
    try:
        return str(read_json(out / RUN).get("model") or "")
    except ArtifactError:
        return ""


def _whole(path: Path) -> bytes:
    return bytes.fromhex(sha256_file(path))


def text_identity(path: Path | None) -> str | None:
    """SHA-256 of a text file, by which a finished run knows it again; None where there is no file."""
    return sha256_file(path) if path is not None and path.is_file() else None
