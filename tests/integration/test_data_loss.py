"""Nothing of the user's is ever written over: output folders are a run's own, locked, and apart from what is read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apportion.bits.apply import apply_to
from apportion.bits.plan.plan import plan_from
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.quantizer import take_samples
from apportion.bits.recipe import Recipe
from apportion.core.artifact import (
    claim_folder,
    finished,
    read_json,
    read_manifest,
    require_free,
    require_replaceable,
    start,
    write_json,
)
from apportion.core.device import place
from apportion.core.errors import ArtifactError, ArtifactExistsError, ArtifactMismatchError
from apportion.core.lock import sole_writer
from apportion.core.output import output_folder
from apportion.models import identity
from apportion.models.identity import run_identity, source_identity
from apportion.models.load import load_full

Make = Callable[..., Path]
ASK = QuantizeRequest(avg_bits=3.0, method="coopq")


def small(text: Path) -> Recipe:
    return Recipe(calibration=text, windows=2, window_tokens=24, permutations=2, group_size=32, rounding="nearest")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_model_folder_as_out_is_refused_untouched_by_every_step(
    resume: bool, checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    model = str(checkpoint(blocks=2))
    victim = Path(shutil.copytree(checkpoint("qwen3", blocks=2), tmp_path / "victim"))
    before = contents(victim)
    quantize(model, tmp_path / "made", ASK, small(text_file))
    plan = plan_from(read_json(tmp_path / "made" / "plan.json"))
    staged, tokenizer = load_full(model, place("cpu"))
    steps: tuple[Callable[[], object], ...] = (
        lambda: quantize(model, victim, ASK, small(text_file), resume=resume),
        lambda: apply_to(staged, tokenizer, plan, victim, resume=resume),
        lambda: take_samples(open_model(model, small(text_file)), victim, resume=resume),
        lambda: quantize(str(victim), victim, ASK, small(text_file), resume=resume),
        lambda: quantize(str(victim), victim / "out", ASK, small(text_file), resume=resume),
    )
    for step in steps:
        with pytest.raises(ArtifactExistsError) as refused:
            step()
        assert "choose a" in refused.value.remedy
        assert "delete" not in refused.value.remedy
        assert "--resume" not in refused.value.remedy
    assert contents(victim) == before


def test_the_current_folder_is_no_out() -> None:
    for resume in (False, True):
        with pytest.raises(ArtifactExistsError, match="names the current folder"):
            require_free(Path(""), resume=resume, kind="quantize")


def test_only_a_run_of_the_same_kind_is_resumed(tmp_path: Path) -> None:
    claim_folder(tmp_path / "s", kind="samples")
    require_free(tmp_path / "s", resume=True, kind="samples")
    with pytest.raises(ArtifactExistsError, match="--resume"):
        require_free(tmp_path / "s", resume=False, kind="samples")
    with pytest.raises(ArtifactExistsError, match="holds a run of 'samples'") as refused:
        require_free(tmp_path / "s", resume=True, kind="quantize")
    assert "--resume" not in refused.value.remedy


@pytest.mark.parametrize("changed", ["text", "model"])
def test_a_finished_folder_does_not_answer_for_another_text_or_model(
    changed: str, checkpoint: Make, tmp_path: Path, text_file: Path
) -> None:
    model = Path(shutil.copytree(checkpoint(blocks=2), tmp_path / "model"))
    text = Path(shutil.copy(text_file, tmp_path / "text.txt"))
    made = quantize(str(model), tmp_path / "out", ASK, small(text))
    assert quantize(str(model), tmp_path / "out", ASK, small(text), resume=True) == made
    if changed == "text":
        text.write_text(text.read_text().replace("a", "e"))
    else:
        shutil.copy(checkpoint("llama", blocks=3) / "model.safetensors", model / "model.safetensors")
    with pytest.raises(ArtifactMismatchError, match=f"made with another {changed} "):
        quantize(str(model), tmp_path / "out", ASK, small(text), resume=True)


def test_a_second_run_on_one_out_is_refused(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with sole_writer(out), pytest.raises(ArtifactError, match="being written by another process"):
        quantize(str(checkpoint(blocks=2)), out, ASK, small(text_file))
    assert not list(out.iterdir())
    assert quantize(str(checkpoint(blocks=2)), out, ASK, small(text_file))["out"] == str(out)
    read_manifest(out)


def test_what_is_refused_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "a" / "b", "test"):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    with output_folder(tmp_path / "a" / "b", "test") as out:
        (out / "kept").touch()
    assert (tmp_path / "a" / "b" / "kept").exists()


def test_a_run_is_finished_only_with_its_manifest_and_the_same_question(tmp_path: Path) -> None:
    asked = {"kind": "test", "value": 1}
    assert not finished(tmp_path / "run", asked, resume=False)
    start(tmp_path / "run", asked)
    assert not finished(tmp_path / "run", asked, resume=True)
    with pytest.raises(ArtifactMismatchError, match="another value"):
        finished(tmp_path / "run", {**asked, "value": 2}, resume=True)


def test_what_a_killed_run_had_begun_to_write_is_removed_when_it_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(out, {"kind": "test"})
    (out / "samples").mkdir()
    begun = (out / ".plan.json.k2j3.part", out / "samples" / ".windows.npy.a1.part", out / ".model.safetensors.part")
    others = (out / "whole.part", out / ".hidden")
    for path in (*begun, *others):
        path.touch()
    with pytest.raises(ArtifactExistsError), output_folder(out, "another", resume=True):
        pass
    with (
        sole_writer(out),
        pytest.raises(ArtifactError, match="another process"),
        output_folder(out, "test", resume=True),
    ):
        pass
    assert all(path.exists() for path in begun)
    with output_folder(out, "test", resume=True):
        assert not any(path.exists() for path in begun)
        assert all(path.exists() for path in others)


def test_a_file_is_replaced_only_by_a_value_of_its_kind(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", {"players": [], "assignment": [], "more": 1})
    (tmp_path / "text").write_text("not ours")
    require_replaceable(tmp_path / "new.json", "players", "assignment")
    require_replaceable(tmp_path / "plan.json", "players", "assignment")
    for name in ("plan.json", "text", "."):
        with pytest.raises(ArtifactExistsError):
            require_replaceable(tmp_path / name, "players", "method")


def test_a_finished_run_does_not_answer_for_a_model_changed_between_samples(
    checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "SAMPLE_BYTES", 64)
    source = Path(shutil.copytree(checkpoint(blocks=2), tmp_path / "source"))
    out, sampled = tmp_path / "out", source_identity(str(source))
    first = quantize(str(source), out, ASK, small(text_file))
    moved = Path(shutil.move(source, tmp_path / "elsewhere" / "source"))
    again = quantize(str(moved), out, ASK, small(text_file), resume=True)
    assert again == {**first, "out": str(out)}
    record = read_json(out / "run.json")
    assert record["model"].startswith("sha256-whole:")
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    step = (len(content) - 64) // 17
    content[step * 9 + 80 : step * 9 + 90] = bytes(10)
    weights.write_bytes(content)
    assert source_identity(str(moved)) == sampled  # no sample lies there
    with pytest.raises(ArtifactMismatchError, match="another model"):
        quantize(str(moved), out, ASK, small(text_file), resume=True)
    monkeypatch.setattr(identity, "WHOLE_BYTES", 1000)
    assert run_identity(str(moved), tmp_path / "new") == sampled.replace("sha256:", "sha256-sampled:")
    older = Path(shutil.copytree(out, tmp_path / "older"))
    write_json(older / "run.json", {**record, "model": sampled})
    assert run_identity(str(moved), older) == sampled
    assert run_identity("owner/name", older) == "owner/name"


def test_a_model_is_known_by_its_bytes(checkpoint: Make, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint(blocks=2), tmp_path / "copy")
    assert source_identity(str(copy)) == source_identity(str(checkpoint(blocks=2)))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert source_identity(str(copy)) != source_identity(str(checkpoint(blocks=2)))
