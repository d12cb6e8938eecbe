"""A written folder may be passed on: it says nothing of where things lie on this machine."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apportion.bits.apply import apply
from apportion.bits.compare.compare import CompareRequest, compare
from apportion.bits.gguf.quantize import quantize_gguf
from apportion.bits.gguf.recipe import FileRequest
from apportion.bits.plan import plan_from
from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.core.artifact import read_json, write_json
from apportion.core.errors import ArtifactMismatchError
from tests.recipes import small

Make = Callable[..., Path]


@pytest.fixture
def home(checkpoint: Make, text_file: Path, tmp_path: Path) -> Path:
    """A folder with an unlikely name, a model and a text in it."""
    home = tmp_path / "somebodys-home"
    home.mkdir()
    shutil.copytree(checkpoint("llama"), home / "tiny-llama")
    shutil.copy(text_file, home / "text.txt")
    return home


def telling(folder: Path) -> list[str]:
    """Files that name the folder that everything lay in."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and b"somebodys-home" in path.read_bytes()
    ]


def quantized(home: Path, *, resume: bool = False) -> Path:
    ask = QuantizeRequest(avg_bits=3.0, method="coopq", device="cpu", dtype="float32")
    quantize(str(home / "tiny-llama"), home / "out", ask, small(home / "text.txt"), resume=resume)
    return home / "out"


def test_a_quantized_folder(home: Path) -> None:
    folder = quantized(home)
    assert telling(folder) == []
    assert read_json(folder / "run.json")["model_source"] == "tiny-llama"


def test_a_run_that_an_earlier_version_began_goes_on_and_another_models_does_not(home: Path) -> None:
    folder = quantized(home)
    saved = read_json(folder / "run.json")
    (folder / "manifest.json").unlink()
    write_json(folder / "run.json", saved | {"model": "sha256:of another one"})
    with pytest.raises(ArtifactMismatchError, match="another model "):
        quantized(home, resume=True)
    write_json(folder / "run.json", saved | {"model_source": str(home / "tiny-llama")})
    assert quantized(home, resume=True) == folder


def test_a_folder_that_was_moved_says_where_it_is(home: Path) -> None:
    folder = quantized(home)
    moved = folder.rename(home / "elsewhere")
    ask = QuantizeRequest(avg_bits=3.0, method="coopq", device="cpu", dtype="float32")
    found = quantize(str(home / "tiny-llama"), moved, ask, small(home / "text.txt"), resume=True)
    assert found["out"] == str(moved)


def test_a_plan_that_was_applied(home: Path) -> None:
    plan = plan_from(read_json(quantized(home) / "plan.json"))
    result = apply(str(home / "tiny-llama"), plan, home / "applied", device="cpu")
    assert result["out"] == str(home / "applied")
    assert telling(home / "applied") == []


def test_a_comparison(home: Path) -> None:
    ask = CompareRequest(
        text=home / "text.txt", methods=("coopq",), avg_bits=(3,), text_windows=2, curve=False, device="cpu"
    )
    compare(str(home / "tiny-llama"), home / "compared", ask, small(home / "text.txt"))
    assert telling(home / "compared") == []


def test_a_gguf_file_and_what_lies_beside_it(home: Path) -> None:
    pytest.importorskip("gguf")
    few = {"windows": 2, "window_tokens": 24, "importance_windows": 2, "sequences": 4, "sequence_tokens": 24}
    request = FileRequest(
        max_bytes=1_000_000, calibration=home / "text.txt", evaluations=8, judged_windows=2, device="cpu", **few
    )
    result = quantize_gguf(str(home / "tiny-llama"), home / "file.gguf", request)
    written = [path for path in home.iterdir() if path.name.startswith("file.gguf")]
    assert len(written) == 2
    assert telling(home) == []
    assert quantize_gguf(str(home / "tiny-llama"), home / "file.gguf", request, resume=True) == result
