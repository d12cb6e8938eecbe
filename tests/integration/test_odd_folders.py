"""Model folders that hold what they should not, or not what they should: taken right, or refused by name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apportion import load
from apportion.bits.perplexity import perplexity
from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.core.artifact import read_json, read_manifest
from apportion.core.device import place
from apportion.core.errors import ArtifactCorruptError
from apportion.models import own
from apportion.models.load import load_model, load_staged
from tests.recipes import small

Make = Callable[..., Path]
CPU = place("cpu", "float32")
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


@pytest.fixture(scope="module")
def written(checkpoint: Make, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ours."""
    out = tmp_path_factory.mktemp("written") / "out"
    quantize(str(checkpoint(blocks=2)), out, ASK, small(text_file))
    return out


def test_a_damaged_folder_of_ours_is_refused_whoever_reads_it(written: Path, text_file: Path, tmp_path: Path) -> None:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-2])

    def zeroed(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-64] + bytes(64))

    for index, (name, harm) in enumerate(
        (
            ("model.safetensors", zeroed),
            ("config.json", cut),
            ("tokenizer_config.json", Path.unlink),
            ("manifest.json", cut),
        )
    ):
        folder = copied(written, tmp_path / str(index))
        harm(folder / name)
        for read in (
            lambda model: load(model),
            lambda model: load_model(model, CPU),
            lambda model: load_staged(model, CPU),
        ):
            with pytest.raises(ArtifactCorruptError, match=name.replace(".", r"\.")):
                read(str(folder))
    with pytest.raises(ArtifactCorruptError, match=r"model\.safetensors: is missing or differs"):
        perplexity(str(tmp_path / "0"), text_file, window_tokens=24, windows=1)


def test_only_a_manifest_of_ours_is_read_and_once(
    written: Path, checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = copied(checkpoint(blocks=2), tmp_path / "foreign")
    for content in ('{"name": "some other tool", "schema": 7}', "[]", "{"):
        (foreign / "manifest.json").write_text(content)
        load(foreign)
        load_staged(str(foreign), CPU)
    unfinished = copied(written, tmp_path / "unfinished")
    (unfinished / "manifest.json").unlink()
    load(unfinished)
    read: list[Path] = []
    monkeypatch.setattr(own, "read_manifest", lambda folder: read.append(folder))
    perplexity(str(written), text_file, window_tokens=24, windows=1)
    assert read == [written]
