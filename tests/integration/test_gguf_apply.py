"""`apportion apply --format gguf`: the codes of our grid in ggml blocks, nothing rounded again; what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import apportion.cli.bits  # noqa: F401  adds the command
from apportion import allocate, budget_from_bits, estimate, open_model, take_samples
from apportion.bits.apply import apply
from apportion.bits.gguf.apply import apply_gguf
from apportion.bits.plan import Plan, plan_from
from apportion.bits.recipe import Recipe
from apportion.cli.base import app
from apportion.core.artifact import read_json, read_manifest, sha256_bytes, write_json
from apportion.core.device import place
from apportion.core.errors import ArtifactError, ArtifactExistsError, ArtifactMismatchError, InputError
from apportion.formats.gguf_file import Field
from apportion.models.gguf.load import load_gguf
from apportion.models.gguf.source import FolderSource, GgufFile, folder_source
from apportion.models.load import load
from tests.llama_cpp import LlamaCpp
from tests.tiny_gguf_models import make_kind
from tests.tiny_models import make_text

CPU = place("cpu", "float32")


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A checkpoint and a plan of mixed widths."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_kind(folder / "model", request.param, intermediate_size=256)
    (folder / "text.txt").write_text(make_text(1500))
    recipe = Recipe(
        calibration=folder / "text.txt", windows=2, window_tokens=24, group_size=32, permutations=2,
        widths=("2", "4", "8"),
    )  # fmt: skip
    sensitivity = estimate(take_samples(open_model(str(model), recipe), folder / "samples"))
    return model, allocate(sensitivity, budget_from_bits(sensitivity.costs, 5))


def test_the_file_holds_the_checkpoints_weights(made: tuple[Path, Plan], tmp_path: Path) -> None:
    model, plan = made
    result = apply_gguf(str(model), plan, tmp_path / "model.gguf", device="cpu")
    apply(str(model), plan, tmp_path / "folder", device="cpu")
    assert len(set(plan.assignment)) > 1
    assert set(result["types"]) == {"Q4_0", "Q8_0"}
    file = GgufFile(tmp_path / "model.gguf")
    own = load(tmp_path / "folder", dtype="float32", dense=True, device="cpu").state_dict()
    for name, theirs in file.parameter_names.items():
        assert torch.equal(file.state()[theirs], own[theirs].float()), name
    assert result["bytes"] == (tmp_path / "model.gguf").stat().st_size
    saved = plan_from(read_json(tmp_path / "model.gguf.apportion" / "plan.json"))
    assert (saved.total_bytes, saved.player_bytes) == (result["bytes"], result["player_bytes"])
    assert result["over_budget"] == max(saved.player_bytes - plan.budget_bytes, 0)
    assert read_manifest(tmp_path / "model.gguf.apportion")["kind"] == "gguf file"


def test_llama_cpp_runs_it(made: tuple[Path, Plan], tmp_path: Path) -> None:
    model, plan = made
    out = tmp_path / "model.gguf"
    apply_gguf(str(model), plan, out, device="cpu")
    ids = torch.randint(4, 300, (32,), generator=torch.Generator().manual_seed(0))
    runner = LlamaCpp(out, 32)
    theirs = torch.from_numpy(runner.logits(ids.tolist())).log_softmax(-1)
    runner.close()
    with torch.inference_mode():
        own = load_gguf(out, CPU).model(input_ids=ids[None]).logits[0].log_softmax(-1)
    assert (own - theirs).abs().max() < 0.2  # llama.cpp also rounds activations to 8 bit


def test_refusals(made: tuple[Path, Plan], tmp_path: Path) -> None:
    model, plan = made
    out = tmp_path / "model.gguf"
    with pytest.raises(InputError, match="hqq does not write our integer grid"):
        apply_gguf(str(model), plan, out, rounding="hqq", device="cpu")
    odd = tuple(replace(width, name=f"w{width.bits}g16", group_size=16) for width in plan.costs.widths)
    with pytest.raises(InputError, match=r"do not divide: model.layers.0.*, .*g16"):
        apply_gguf(str(model), replace(plan, costs=replace(plan.costs, widths=odd)), out, device="cpu")
    with pytest.raises(ArtifactMismatchError, match="made for the model"):
        apply_gguf(str(model), replace(plan, settings={**plan.settings, "model": "0" * 64}), out, device="cpu")
    with pytest.raises(InputError, match=r"ends in \.gguf"):
        apply_gguf(str(model), plan, tmp_path / "folder", device="cpu")
    out.write_bytes(b"mine")
    with pytest.raises(ArtifactExistsError, match="exists"):
        apply_gguf(str(model), plan, out, device="cpu")


def test_a_plan_of_embedding_and_head_is_not_written_without_them(made: tuple[Path, Plan], tmp_path: Path) -> None:
    model, plan = made
    with pytest.raises(InputError, match="gives embedding a width"):
        apply_gguf(str(model), replace(plan, vocabulary={"embedding": "w8g32"}), tmp_path / "x.gguf", device="cpu")
    assert not (tmp_path / "x.gguf").exists()


def test_a_finished_file_that_is_gone_or_another_is_written_again(made: tuple[Path, Plan], tmp_path: Path) -> None:
    model, plan = made
    out = tmp_path / "model.gguf"
    first = apply_gguf(str(model), plan, out, device="cpu")
    whole, manifest = out.read_bytes(), read_manifest(tmp_path / "model.gguf.apportion")
    assert manifest["file"] == {"name": out.name, "bytes": len(whole), "sha256": sha256_bytes(whole)}
    for other in (None, b"another", bytes(len(whole))):
        out.unlink() if other is None else out.write_bytes(other)
        assert apply_gguf(str(model), plan, out, device="cpu", resume=True) == first
        assert out.read_bytes() == whole
        assert read_manifest(tmp_path / "model.gguf.apportion") == manifest


def test_a_file_that_could_not_be_read_again_is_not_kept(
    made: tuple[Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = made

    def odd(*given: Any) -> FolderSource:
        source = folder_source(*given)
        return replace(source, fields={**source.fields, "general.alignment": Field("UINT32", 64)})

    monkeypatch.setattr("apportion.bits.gguf.apply.folder_source", odd)
    with pytest.raises(ArtifactError, match=r"model\.gguf: was written and cannot be read again"):
        apply_gguf(str(model), plan, tmp_path / "model.gguf", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf.apportion"]
    assert not (tmp_path / "model.gguf.apportion" / "manifest.json").exists()


def test_the_command(made: tuple[Path, Plan], tmp_path: Path) -> None:
    model, plan = made
    write_json(tmp_path / "plan.json", plan)
    out = tmp_path / "model.gguf"
    command = ["apply", str(model), str(tmp_path / "plan.json"), "--out", str(out), "--device", "cpu", "--format"]
    wrong = CliRunner().invoke(app, [*command, "onnx"])
    assert wrong.exit_code != 0
    assert "--format onnx: unknown" in str(wrong.exception)
    shown = CliRunner().invoke(app, [*command, "gguf"])
    assert shown.exit_code == 0, shown.output
    assert f"{out.stat().st_size:,} bytes" in shown.output
    assert set(GgufFile(out).types.values()) >= {"Q4_0", "Q8_0", "F32"}
