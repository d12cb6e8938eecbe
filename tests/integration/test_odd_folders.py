"""Model folders that hold what they should not, or not what they should: taken right, or refused by name."""

import shutil
from collections.abc import Callable
from pathlib import Path

from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.core.artifact import read_json, read_manifest
from tests.recipes import small

Make = Callable[..., Path]
ASK = QuantizeRequest(avg_bits=3.0, method="coopq")


def copied(source: Path, folder: Path) -> Path:
    """A folder of the test's own to change."""
    return Path(shutil.copytree(source, folder))


def test_a_sources_own_folders_of_our_names_are_left(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    source = copied(checkpoint(blocks=2), tmp_path / "source")
    for name in ("work/notes.txt", "report/own.md", "notes/kept.txt", "works.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    (source / "samples").write_text("a file where a run has a folder")
    out = tmp_path / "out"
    quantize(str(source), out, ASK, small(text_file))
    listed = read_manifest(out)["files"]  # every file is as written
    assert {"notes/kept.txt", "works.txt"} <= listed.keys()
    assert not (out / "work").exists()
    left = read_json(out / "result.json")["account"]["left"]
    assert {"work/notes.txt", "report/own.md", "samples"} <= left.keys()
