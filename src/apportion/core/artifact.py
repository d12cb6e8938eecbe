"""Files that are either complete or absent: atomic writes, digests, and a manifest written last.

A folder is complete when its `manifest.json` exists; the manifest names every file with its SHA-256.
"""

import hashlib
import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import Any

from apportion.core.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactExistsError,
    ArtifactMismatchError,
)

MANIFEST = "manifest.json"
CHECKPOINT = "quantized checkpoint"  # the kind of such a folder, in its manifest
_FOREIGN = "holds files that this program did not put there"
RUN = "run.json"
PARTS = ".*.part"  # files that are being written: they are renamed when they are whole
# an absolute path that begins a text or follows one of = , : and is no URL's //host
PLACED = re.compile(r"^[A-Za-z]:[\\/].*|(?:^|(?<=[=,:]))/(?!/)[^=,:]+")
SCHEMA_VERSION = 1
Json = dict[str, Any]


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """Hex SHA-256 of a JSON-able value in canonical form (sorted keys, no spaces)."""
    return sha256_bytes(json.dumps(plain(value), sort_keys=True, separators=(",", ":")).encode())


def plain(value: object) -> Any:
    """Dataclasses, paths, tuples and numpy scalars as JSON types; numbers that are not finite are refused."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        raise ArtifactError(f"a value to be saved is {value}, and only finite numbers are saved")
    return value


def without_folders(value: Any) -> Any:
    """What may be passed on with a folder: an absolute path becomes its name; digests say which file it was.

    >>> without_folders({"model": "/home/me/llama", "calibration": ["/data/a.jsonl:2", "own/b.txt"]})
    {'model': 'llama', 'calibration': ['a.jsonl:2', 'own/b.txt']}
    >>> without_folders(["meta/llama", "http://127.0.0.1:8000/v1", "C:/models/llama", None, 3])
    ['meta/llama', 'http://127.0.0.1:8000/v1', 'llama', None, 3]
    """
    if isinstance(value, Mapping):
        return {name: without_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return PLACED.sub(lambda found: PureWindowsPath(found[0]).name, value) if isinstance(value, str) else value


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or none of it, even after a crash.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise disk_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(path: Path, error: OSError) -> ArtifactError:
    """The error a user sees when the system refuses a write; `unreadable` is the one of a read."""
    return ArtifactError(
        f"{path}: cannot be written: {error.strerror or error}",
        "free space or choose another --out; what was finished before is kept and --resume continues it",
    )


def unreadable(path: Path, error: OSError) -> ArtifactError:
    """The error a user sees when the system refuses to give what a file holds."""
    return ArtifactError(
        f"{path}: cannot be read: {error.strerror or error}", "check that it is there, and yours to read"
    )


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically."""
    write_bytes(path, (json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Json:
    """Read a JSON object.

    Raises:
        ArtifactError: missing. ArtifactCorruptError: not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file", "run the step that writes it first") from error
    except (OSError, ValueError) as error:
        raise ArtifactCorruptError(f"{path}: cannot be read as JSON: {error}", "make it again") from error
    if not isinstance(value, dict):
        raise ArtifactCorruptError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def require_free(folder: Path, *, resume: bool, kind: str = "") -> None:
    """Refuse an output folder that holds anything but a run of this kind that is being resumed; writes nothing.

    Whose a folder is, its `run.json` says: written when a run begins, by this program alone. A folder without one
    (a model, an index, anything of the user's) is never written into, resumed or not.

    Args:
        kind: of the run, as in its record; empty for what cannot be resumed.
    """
    if folder == Path():
        raise ArtifactExistsError("--out: names the current folder", "name a folder of its own, e.g. --out ./out")
    if folder.exists() and not folder.is_dir():
        raise ArtifactExistsError(f"--out {folder}: is a file, expected a folder", "choose another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return
    begun = begun_as(folder)
    if not kind or begun != kind:
        made = kind_of(folder)
        holds = f"holds a run of {begun!r}" if begun else f"holds a whole {made!r}" if made else _FOREIGN
        raise ArtifactExistsError(f"--out {folder}: exists and is not empty; it {holds}", "choose another --out")
    if not resume:
        raise ArtifactExistsError(
            f"--out {folder}: exists and is not empty", "choose another --out, or continue it with --resume"
        )


def kind_of(folder: Path) -> str:
    """What a folder is, by its manifest; empty where it has none."""
    try:
        return str(read_json(folder / MANIFEST).get("kind") or "")
    except ArtifactError:
        return ""


def require_replaceable(path: Path, *fields: str) -> None:
    """Refuse an output file that holds anything but an earlier value of the same kind; writes nothing.

    Args:
        fields: that the JSON of such a value has, e.g. `players` and `method`.

    Raises:
        ArtifactExistsError: it holds something else.
    """
    if path.is_dir():
        raise ArtifactExistsError(f"--out {path}: is a folder, expected a file", "name a file, e.g. --out plan.json")
    try:
        if not path.exists() or set(fields) <= read_json(path).keys():
            return
    except ArtifactError:
        pass
    raise ArtifactExistsError(f"--out {path}: exists and holds something else", "choose another --out")


def begun_as(folder: Path) -> str:
    """What kind of run this program began in a folder; empty where it began none."""
    try:
        kind = read_json(folder / RUN).get("kind", "")
    except ArtifactError:
        return ""
    return kind if isinstance(kind, str) else ""


def claim_folder(
    folder: Path, *, resume: bool = False, kind: str = "", record: Mapping[str, Any] | None = None
) -> None:
    """Create an output folder, or refuse as `require_free` does.

    Args:
        kind: recorded in the folder at once, so that it can be resumed however early the run ends; `record`: with what.
    """
    require_free(folder, resume=resume, kind=kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    if kind and not (folder / RUN).exists():
        write_json(folder / RUN, record or {"kind": kind})


def finished(folder: Path, asked: Mapping[str, Any], *, resume: bool, raisable: Collection[str] = ()) -> bool:
    """Whether a run is complete already; writes nothing, so that what is refused later leaves no folder behind.

    Args:
        asked: `kind` of the run, and everything that its result depends on: model and text by digest too, since a
            finished folder is compared with this alone.
        raisable: limits that may be higher than they were, as long as the run is not complete.

    Raises:
        ArtifactExistsError: as `require_free`. ArtifactMismatchError: something else was asked there.
    """
    require_free(folder, resume=resume, kind=asked["kind"])
    if (folder / RUN).exists():
        saved, asked = (without_folders(one) for one in (read_json(folder / RUN), plain(asked)))
        if not (folder / MANIFEST).exists():
            saved |= {name: asked[name] for name in raisable if saved.get(name, asked[name]) < asked[name]}
        require_same(saved, asked, folder)
    return (folder / MANIFEST).exists()


def start(folder: Path, asked: Mapping[str, Any]) -> None:
    """Create the folder of a run and record what was asked, so that a resumed one can be compared with it.

    The folder may be given to others: what is recorded names files, not where they lie.
    """
    asked = without_folders(plain(asked))
    claim_folder(folder, resume=True, kind=asked["kind"], record=asked)
    if read_json(folder / RUN) != asked:  # a limit was raised
        write_json(folder / RUN, asked)


def require_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Refuse to continue work that was started from other inputs, naming every key that differs."""
    wanted = plain(wanted)
    differing = [key for key in sorted({*saved, *wanted}) if saved.get(key) != wanted.get(key)]
    if differing:
        details = "; ".join(f"{key}: saved {saved.get(key)!r}, now {wanted.get(key)!r}" for key in differing)
        raise ArtifactMismatchError(
            f"{where}: was made with another {', '.join(differing)} ({details})",
            "use the same model, text and settings to resume, or choose another --out",
        )


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of this package, Python and the named packages; absent ones are said to be absent."""
    found = {"python": platform.python_version()}
    for package in ("apportion", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_manifest(folder: Path, content: Mapping[str, Any], files: Iterable[str]) -> None:
    """Write `manifest.json` last: its existence means that the folder is complete."""
    listed = {name: sha256_file(folder / name) for name in sorted(files)}
    write_json(folder / MANIFEST, {"schema": SCHEMA_VERSION, **content, "files": listed})


def read_manifest(folder: Path, *, verify: bool = True) -> Json:
    """Read a complete folder's manifest and check every file it names.

    Raises:
        ArtifactError: no manifest, so the folder was never finished.
        ArtifactCorruptError: a file is missing or differs from its digest.
    """
    if not (folder / MANIFEST).exists():
        raise ArtifactError(f"{folder}: has no {MANIFEST}, so it is not complete", "run the step again")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("schema") != SCHEMA_VERSION:
        raise ArtifactMismatchError(
            f"{folder}: schema {manifest.get('schema')!r}, expected {SCHEMA_VERSION}",
            "read it with the version of apportion that wrote it",
        )
    if not isinstance(manifest.get("files"), dict):
        raise ArtifactCorruptError(f"{folder / MANIFEST}: lists no files", "make it again")
    if verify:
        for name, digest in manifest["files"].items():
            if not (folder / name).exists() or sha256_file(folder / name) != digest:
                raise ArtifactCorruptError(f"{folder / name}: is missing or differs from the manifest", "make it again")
    return manifest
