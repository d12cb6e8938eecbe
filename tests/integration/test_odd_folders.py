"""Model folders that hold what they should not, or not what they should: taken right, or refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apportion import load
from apportion.bits.divergence.measure import divergence_of, reference_of
from apportion.bits.perplexity import perplexity
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.quantizer import Quantizer
from apportion.core.artifact import read_json, read_manifest
from apportion.core.device import place
from apportion.core.errors import ArtifactCorruptError, InputError, NumericError
from apportion.models import own
from apportion.models.load import load_full, load_model, load_staged
from tests.integration.test_real_checkpoints import in_shards
from tests.recipes import small

Make = Callable[..., Path]
CPU = place("cpu", "float32")
IDS = torch.arange(2, 26)[None]
ASK = QuantizeRequest(avg_bits=3.0, method="coopq")


def copied(source: Path, folder: Path) -> Path:
    """A folder of the test's own to change."""
    return Path(shutil.copytree(source, folder))


def stored(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """The same folder with other tensors."""
    copied(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configured(folder: Path, **values: object) -> Path:
    """The same folder with other values in its configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


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


def test_weights_that_no_configuration_explains_are_refused_by_name(checkpoint: Make, tmp_path: Path) -> None:
    source, last = checkpoint(blocks=2), "model.layers.1.mlp.down_proj.weight"

    def integers(tensors: dict[str, Tensor]) -> None:
        for name in (last, "model.embed_tokens.weight"):
            tensors[name] = (tensors[name] * 100).round().to(torch.int8)

    def scaled(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = torch.ones(())

    with pytest.raises(InputError, match="no quantization_config") as refused:
        load_full(str(stored(source, tmp_path / "int8", integers)), CPU)
    assert f"model.embed_tokens.weight (I8), {last} (I8)" in refused.value.problem
    with pytest.raises(InputError, match=r"_proj\.weight \(F8_E4M3 with scales\), .* and 6 more"):
        load_model(str(stored(source, tmp_path / "fp8", scaled)), CPU)


@pytest.mark.parametrize("said", ["bfloat16", "float8_e4m3fn", None])
def test_weights_plainly_cast_to_fp8_are_written_with_scales_of_sixteen_bits(
    said: str | None, checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    def cast(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("proj.weight", "embed_tokens.weight"))]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors["model.layers.0.mask"] = torch.ones((2, 2), dtype=torch.uint8)  # no weight: nobody minds it

    source = configured(stored(checkpoint(blocks=2), tmp_path / "cast", cast), dtype=said)
    exact = load_file(source / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    staged, _ = load_full(str(source), CPU)
    assert staged.stored_as == ""
    assert torch.equal(staged.originals["model.layers.1.mlp.down_proj"], exact.bfloat16())
    quantize(str(source), tmp_path / "out", ASK, small(text_file))
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()}
    assert {dtype for name, dtype in dtypes.items() if name.endswith("_scale")} == {torch.bfloat16}
    assert dtypes["model.embed_tokens.weight"] == torch.bfloat16
    assert "float8" not in (tmp_path / "out" / "config.json").read_text()


def test_one_weight_file_beside_an_index_of_others_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    both = in_shards(checkpoint(blocks=2), tmp_path / "both")
    shutil.copy(checkpoint(blocks=2) / "model.safetensors", both)
    with pytest.raises(
        InputError, match=r"holds model\.safetensors and model\.safetensors\.index\.json, which names other"
    ):
        load_staged(str(both), CPU)
    index = both / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": dict.fromkeys(load_file(both / "model.safetensors"), "model.safetensors")})
    )
    for shard in both.glob("model-*"):
        shard.unlink()
    assert load_staged(str(both), CPU).originals


def test_a_model_without_linears_to_quantize_is_refused_with_the_reason(checkpoint: Make, tmp_path: Path) -> None:
    empty = configured(copied(checkpoint(blocks=2), tmp_path / "empty"), num_hidden_layers=0)
    with pytest.raises(InputError, match="no linear that can be quantized: its blocks hold none"):
        open_model(str(empty), small(None))
    staged, tokenizer = load_full(str(checkpoint(blocks=2)), CPU)
    staged.keep(list(staged.originals), "columns of 7")
    with pytest.raises(InputError, match="no linear that can be quantized: columns of 7"):
        Quantizer(staged, tokenizer, small(None))


def test_tensors_of_other_shapes_are_named_with_both(checkpoint: Make, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def transposed(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].t().contiguous()

    with pytest.raises(InputError, match=rf"config.json says: {name} \[128, 64\], expected \[64, 128\]\n"):
        load_staged(str(stored(checkpoint(blocks=2), tmp_path / "turned", transposed)), CPU)
    wide = configured(copied(checkpoint(blocks=4), tmp_path / "wide"), intermediate_size=96)
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.down_proj\.weight \[64, 128\], .* and 8 more"):
        load_model(str(wide), CPU)
    fewer = configured(copied(checkpoint(blocks=2), tmp_path / "fewer"), vocab_size=150)
    with pytest.raises(InputError, match=r"embed_tokens\.weight \[160, 64\], expected \[150, 64\]"):
        load(fewer)


def test_a_wider_dtype_is_no_remedy_where_there_is_none(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    def endless(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")

    broken = str(stored(checkpoint(blocks=2), tmp_path / "broken", endless))
    for dtype, remedy in (("bfloat16", "use --dtype float32"), ("float32", "the weights are damaged")):
        for measured in (
            lambda dtype: perplexity(broken, text_file, window_tokens=24, windows=1, dtype=dtype),
            lambda dtype: quantize(broken, tmp_path / dtype, replace(ASK, dtype=dtype), small(text_file)),
            lambda dtype: load_staged(broken, place("cpu", dtype)).verify(IDS),
            lambda dtype: divergence_of(reference_of(made := load_staged(broken, place("cpu", dtype)), IDS), made),
        ):
            with pytest.raises(NumericError, match="not finite") as refused:
                measured(dtype)
            assert refused.value.remedy.startswith(remedy)
