"""The file of a finished run: what the manifest says of it, whether that holds, and the same file once more."""

from dataclasses import replace
from pathlib import Path

from apportion.bits.gguf.plan import FilePlan, write_file
from apportion.bits.gguf.recipe import FileRequest
from apportion.bits.gguf.workshop import open_workshop
from apportion.core.artifact import MANIFEST, Json, read_json, read_manifest, sha256_file, versions, write_json
from apportion.core.errors import ArtifactError, ArtifactMismatchError
from apportion.formats.gguf_file import file_bytes

PACKAGES = ("torch", "transformers", "gguf", "libggml-python")  # that a file's bytes come from


def file_record(out: Path) -> Json:
    """What a manifest says of the file, which lies beside the folder of its evidence."""
    return {"name": out.name, "bytes": out.stat().st_size, "sha256": sha256_file(out)}


def intact(folder: Path, out: Path) -> bool:
    """Whether the file of a finished run is there as it was written.

    Of a manifest that says nothing of the file (earlier versions) the result's bytes are all there is to compare.
    """
    record = read_manifest(folder, verify=False).get("file")
    expected = read_json(folder / "result.json")["bytes"] if record is None else record["bytes"]
    if not out.is_file() or out.stat().st_size != expected:
        return False
    return record is None or sha256_file(out) == record["sha256"]


def write_again(folder: Path, model: str, out: Path, request: FileRequest) -> None:
    """The file of a finished run by its plan and its importance: each matrix is encoded once, nothing is measured.

    Args:
        folder: its evidence, of this model and request.

    Raises:
        ArtifactError: the evidence is not whole, or another version would write another file; what to do instead.
    """
    try:
        manifest, saved = read_manifest(folder), read_json(folder / "plan.json")
        if request.reuse is not None:
            read_manifest(request.reuse)
    except ArtifactError as error:
        raise ArtifactError(
            f"{out}: is gone or not the file of this run, and cannot be written again: {error.problem}",
            "make it anew: run it with another --out",
        ) from error
    shop = open_workshop(model, replace(request, reuse=request.reuse or folder))
    plan = FilePlan(**{**saved, "assignment": tuple(saved["assignment"]), "finalists": ()})
    entries = shop.ladders.entries(shop.source.shapes, plan.assignment)
    types = {name: entry.type for name, entry in entries.items()}
    if types != plan.types or file_bytes(shop.fields, entries) != plan.total_bytes:
        raise ArtifactMismatchError(
            f"{out}: is gone or not the file of this run, and this version would write another in its place",
            f"run it with another --out and --reuse {request.reuse or folder}, which measures nothing again",
        )
    shop.only(plan.types)
    write_file(shop, plan, out)
    write_json(folder / MANIFEST, {**manifest, "versions": versions(*PACKAGES), "file": file_record(out)})
