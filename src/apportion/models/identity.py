"""Which model a folder holds, as a short digest that does not depend on where the folder lies."""

import hashlib
from pathlib import Path

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
