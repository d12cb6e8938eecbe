"""Checkpoints as people have them: wrapped, mixed, with experts, in shards, in FP8. Nothing of them is lost."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apportion.bits.checkpoint import unquantized, write_checkpoint
from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import Moments, round_all, round_plan, rounding_named
from apportion.bits.rounding.sequential import walk
from apportion.bits.written import account_of, reloaded
from apportion.core.artifact import read_json
from apportion.core.device import place
from apportion.core.errors import ArtifactCorruptError, InputError, ModelStructureError
from apportion.formats import COMPRESSED_TENSORS, HQQ, Format, Packed, Width, grid_width
from apportion.models.experts import LinearExperts
from apportion.models.load import load_full, load_model, load_staged
from apportion.models.source import open_source
from apportion.models.staged import StagedModel
from benchmarks.tiny_architectures import make
from tests.integration.tiny_gguf import write_gguf
from tests.integration.tiny_model import make_tiny_model
from tests.recipes import small

CPU = place("cpu", "float32")
IDS = torch.randint(2, 150, (3, 20), generator=torch.Generator().manual_seed(3))
Make = Callable[..., Path]
WRAPPED = ["Gemma-3 wrapper", "Qwen3.5"]


def written(
    folder: Path, out: Path, form: Format = COMPRESSED_TENSORS
) -> tuple[StagedModel, dict[str, Width], dict[str, Packed]]:
    """Quantize a folder's linears to 2 and 4 bits in turn and write them."""
    staged, tokenizer = load_full(str(folder), CPU)
    rounding = rounding_named("nearest" if form is COMPRESSED_TENSORS else form.name)
    widths = {path: grid_width(2 + 2 * (index // 7 % 2), 32) for index, path in enumerate(staged.originals)}
    both = round_all(staged, rounding, (grid_width(2, 32), grid_width(4, 32)))
    packed = {path: both[path, width] for path, width in widths.items()}
    out.mkdir()
    write_checkpoint(out, staged, widths, packed, tokenizer, form)
    return staged, widths, packed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny checkpoint of an architecture by name, made once."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp("architecture") / "model")
        return made[name]

    return find


@pytest.mark.parametrize("name", WRAPPED)
def test_all_that_is_not_quantized_is_the_sources_to_the_byte(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny(name)
    staged, widths, packed = written(source, tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    kept = unquantized(staged)
    assert len(before) - len(kept) == len(widths) > 0
    for key in kept:
        assert after[key].dtype == before[key].dtype
        assert torch.equal(after[key].view(torch.uint8), before[key].view(torch.uint8)), key
    assert any(tensor.dtype == torch.float32 for tensor in before.values())  # norms beside bfloat16
    assert "mtp.fc.weight" in after  # what no class has a place for
    assert any("vision" in key or "visual" in key for key in after)
    packed_names = {key.removesuffix(".weight_packed") for key in after if key.endswith(".weight_packed")}
    assert {f"{key}.weight" for key in packed_names} == set(before) - set(kept)  # under the source's names
    for file in ("LICENSE", "preprocessor_config.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes()
    config, own = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", source))
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert config == own
    account = account_of(tmp_path / "out", staged)
    assert (account.quantized, account.copied, account.unknown) == (len(widths), len(kept), ("mtp.fc.weight",))
    found = reloaded(tmp_path / "out", staged, packed, COMPRESSED_TENSORS)
    assert found.loads_in == {"transformers": ""}
    assert found.difference == 0


def test_targets_are_plain_paths_of_modules_and_tied_by_structure(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    staged, widths, _ = written(tiny("Gemma-3 wrapper"), tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    targets = {target for group in saved["config_groups"].values() for target in group["targets"]}
    assert targets == set(widths)
    assert not any(target.startswith("re:") for target in targets)
    assert all(isinstance(staged.model.get_submodule(target), torch.nn.Linear) for target in targets)
    assert not targets & set(saved["ignore"])
    assert any("vision" in name for name in saved["ignore"])


def test_a_changed_byte_is_found_before_a_folder_is_complete(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    staged, _, packed = written(tiny("Qwen3"), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    norm = next(key for key in tensors if key.endswith("norm.weight"))
    save_file({**tensors, norm: tensors[norm] * 2}, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactCorruptError, match=f"differs from its source in {norm}"):
        account_of(tmp_path / "out", staged)
    with pytest.raises(ArtifactCorruptError, match="predicts otherwise"):
        reloaded(tmp_path / "out", staged, packed, COMPRESSED_TENSORS)


def test_experts_are_linears_and_come_back_under_the_files_names(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    staged, widths, packed = written(tiny("Mixtral"), tmp_path / "out")
    fused = load_model(str(tiny("Mixtral")), CPU).model  # not taken apart where it is only run
    assert not any(isinstance(module, LinearExperts) for module in fused.modules())
    assert sum(".experts." in path for path in widths) == 2 * 4 * 3
    assert "model.layers.0.mlp.experts.3.w2" in widths
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight_packed" in after
    assert "model.layers.0.block_sparse_moe.gate.weight" in after  # the router stays
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    for path, width in widths.items():  # transformers asks by its module's name, vLLM for experts by the file's
        names = {path, staged.origin.paths[path]} if ".experts." in path else {path}
        assert names <= set(groups[width.name]["targets"])
    assert "model.layers.0.block_sparse_moe.experts.3.w2" in staged.origin.paths.values()
    with torch.inference_mode():
        one, other = (model(input_ids=IDS).logits for model in (fused, staged.model))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    found = reloaded(tmp_path / "out", staged, packed, COMPRESSED_TENSORS)
    assert found.difference == 0
    assert "experts" in found.loads_in["transformers"]  # and it is said that stock transformers does not fill them
    alone = load_staged(str(tmp_path / "out"), CPU)  # as perplexity and divergence measure it
    staged.restore()
    with staged.in_place(packed):
        assert np.allclose(alone.window_nll(IDS), staged.window_nll(IDS), atol=1e-5)


def test_experts_that_cannot_be_quantized_can_be_measured(tiny: Callable[[str], Path]) -> None:
    staged = load_staged(str(tiny("gpt-oss")), CPU)
    assert np.isfinite(staged.window_nll(IDS)).all()
    with pytest.raises(ModelStructureError, match="tensors of three dimensions"):
        load_full(str(tiny("gpt-oss")), CPU)


def test_experts_that_the_file_holds_in_one_tensor_are_written_one_by_one(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """As the files of Qwen3.5-MoE have them: the same tensors as the class."""
    source = Path(shutil.copytree(tiny("Qwen3.5-MoE"), tmp_path / "fused"))
    tensors = load_file(source / "model.safetensors")
    for block in range(2):
        prefix = f"model.language_model.layers.{block}.mlp.experts"
        own = [{k: tensors.pop(f"{prefix}.{e}.{k}_proj.weight") for k in ("gate", "up", "down")} for e in range(4)]
        tensors[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat([one["gate"], one["up"]]) for one in own])
        tensors[f"{prefix}.down_proj"] = torch.stack([one["down"] for one in own])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    staged, widths, packed = written(source, tmp_path / "out")
    assert staged.verify(IDS) <= 1e-5
    assert f"{prefix}.3.up_proj" in widths
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert f"{prefix}.3.up_proj.weight_packed" in after
    assert f"{prefix}.gate_up_proj" not in after
    account_of(tmp_path / "out", staged)
    assert reloaded(tmp_path / "out", staged, packed, COMPRESSED_TENSORS).difference == 0


def test_each_expert_has_its_own_width_where_the_format_is_not_one_of_servers(
    tiny: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    model = str(tiny("Mixtral"))
    ask = QuantizeRequest(avg_bits=3.0, method="coopq", device="cpu")
    free = small(text_file, players="linears", per_expert=True, permutations=2)
    with pytest.raises(InputError, match=r"(?s)--per-expert: nearest writes compressed-tensors.*apportion\.load"):
        quantize(model, tmp_path / "refused", ask, free)
    with pytest.raises(InputError, match="--per-expert: players are blocks"):
        quantize(model, tmp_path / "refused", ask, replace(free, players="blocks", apply_rounding="hqq"))
    result = quantize(model, tmp_path / "out", ask, replace(free, apply_rounding="hqq"))
    experts = {name: width for name, width in result["plan"].items() if ".experts." in name}
    assert sorted(experts) == [f"block {block} mlp.experts.{expert}" for block in range(2) for expert in range(4)]
    assert len(set(experts.values())) > 1
    assert result["reload_difference"] < 1e-4


def test_a_folder_of_ours_loads_decoded_in_every_half(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    for form in (COMPRESSED_TENSORS, HQQ):
        out = tmp_path / form.name
        staged, _, packed = written(tiny("Gemma-3 wrapper"), out, form)
        loaded = load_model(str(out), CPU)
        assert loaded.format == form.name
        with torch.inference_mode(), staged.in_place(packed):
            expected = staged.model(input_ids=IDS).logits
        with torch.inference_mode():
            assert torch.equal(loaded.model(input_ids=IDS).logits, expected)
        linears = [module for module in loaded.model.modules() if isinstance(module, torch.nn.Linear)]
        assert linears
        assert all("forward" not in vars(module) for module in linears)  # nothing is decoded in a forward pass
        with pytest.raises(InputError, match="is quantized already"):
            load_full(str(out), CPU)
        assert load_staged(str(out), CPU).verify(IDS) <= 1e-5


def in_shards(source: Path, folder: Path) -> Path:
    """The same tensors in two files with an index."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_that_are_missing_extra_or_cut_are_refused_by_name(checkpoint: Make, tmp_path: Path) -> None:
    whole = in_shards(checkpoint("llama", blocks=2), tmp_path / "whole")
    assert len(open_source(whole).tensors) == len(load_file(checkpoint("llama", blocks=2) / "model.safetensors"))
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    for name, harm in {
        f"{second} is missing": lambda folder: (folder / second).unlink(),
        "model-00003-of-00002.safetensors is not in the index": lambda folder: shutil.copy(
            folder / first, folder / "model-00003-of-00002.safetensors"
        ),
        f"{first}: has 3,000 bytes": lambda folder: (folder / first).write_bytes((folder / first).read_bytes()[:3000]),
        "lie there without model.safetensors.index.json": lambda folder: (
            folder / "model.safetensors.index.json"
        ).unlink(),
    }.items():
        broken = Path(shutil.copytree(whole, tmp_path / "broken"))
        harm(broken)
        with pytest.raises(InputError, match=name):
            load_full(str(broken), CPU)
        shutil.rmtree(broken)


def test_a_blockwise_fp8_checkpoint_is_decoded_tile_by_tile(checkpoint: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("llama", blocks=2), tmp_path / "fp8"))
    tensors = load_file(folder / "model.safetensors")
    rows = columns = 32
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        weight = tensors[name].float()
        tiles = weight.unfold(0, rows, rows).unfold(1, columns, columns)
        scale = tiles.abs().amax((-1, -2)) / 448
        spread = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        tensors[name] = (weight / spread).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [rows, columns]}
    (folder / "config.json").write_text(json.dumps(config))
    staged, _ = load_full(str(folder), CPU)
    path = "model.layers.1.mlp.down_proj"
    scale = tensors[f"{path}.weight_scale_inv"].repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    assert torch.equal(staged.originals[path], (tensors[f"{path}.weight"].float() * scale).bfloat16())
    written(folder, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert saved["quant_method"] == "compressed-tensors"
    assert not any("scale_inv" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    del tensors[f"{path}.weight_scale_inv"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"without fitting scales: {path}"):
        load_full(str(folder), CPU)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BERT", "fills in masked words"),
        ("T5", "an encoder with a decoder"),
        ("GPT-2", "linear modules .*Conv1D"),
        ("gpt-oss", "keeps its experts in tensors of three dimensions"),
        ("Gemma-4 E", "something of the text besides hidden states"),
    ],
)
def test_what_cannot_be_quantized_is_refused_with_the_reason(
    name: str, reason: str, tiny: Callable[[str], Path]
) -> None:
    with pytest.raises((InputError, ModelStructureError), match=reason):
        load_full(str(tiny(name)), CPU)[0].verify(IDS)


@pytest.mark.parametrize("name", ["BLOOM", "GPT-J", "RWKV", "LFM2", "Jamba", "Qwen3-Next", "MPT"])
def test_blocks_are_run_as_the_model_calls_them(name: str, tiny: Callable[[str], Path]) -> None:
    assert load_full(str(tiny(name)), CPU)[0].verify(IDS) <= 1e-5


def test_a_window_that_the_model_cannot_read_is_refused(tiny: Callable[[str], Path]) -> None:
    staged, _ = load_full(str(tiny("OPT")), CPU)
    with pytest.raises(InputError, match="--window-tokens 300: the model has 256 positions"):
        staged.window_nll(torch.zeros(1, 300, dtype=torch.long))
    with pytest.raises(InputError, match="token 160, and the model's embedding has 160 rows"):
        staged.window_nll(torch.full((1, 20), 160))


def test_a_linear_that_no_group_divides_stays_as_it_is_and_is_named(tmp_path: Path, text_file: Path) -> None:
    """Mamba's time step is made of 8 numbers: one linear of 8 columns in every block."""
    source = make("Mamba", tmp_path / "model", time_step_rank=8)
    ask = QuantizeRequest(avg_bits=3.0, method="shapley", device="cpu")
    recipe = Recipe(
        calibration=text_file, windows=2, window_tokens=24, permutations=1, group_size=32, rounding="nearest"
    )
    with pytest.raises(InputError, match=r"does not divide backbone\.layers\.0\.mixer\.dt_proj \(8 columns\)"):
        quantize(str(source), tmp_path / "out", ask, replace(recipe, strict=True))
    made = quantize(str(source), tmp_path / "out", ask, recipe)
    reason = "columns that groups of 32 do not divide"
    assert made["account"]["kept"] == [[f"backbone.layers.{block}.mixer.dt_proj", reason] for block in range(2)]
    assert "backbone.layers.0.mixer.dt_proj.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert made["loads_in"]["transformers"] != ""  # what it cannot load is said, and ours can
    assert made["reload_difference"] == 0


def test_a_gguf_file_of_high_precision_is_a_model_and_another_is_refused(text_file: Path, tmp_path: Path) -> None:
    import gguf

    folder = make_tiny_model(tmp_path / "hf")
    file = write_gguf(folder, tmp_path / "model.gguf")
    staged, tokenizer = load_full(str(file), CPU)
    own = load_model(str(folder), CPU)
    ids = torch.arange(2, 42).view(2, 20)
    with torch.inference_mode():
        torch.testing.assert_close(staged.model(input_ids=ids).logits, own.model(input_ids=ids).logits)
    assert tokenizer("Paris is the capital").input_ids == own.tokenizer("Paris is the capital").input_ids
    assert staged.verify(ids) <= 1e-5
    ask, recipe = QuantizeRequest(avg_bits=3.0, method="regression"), small(text_file, windows=2)
    assert quantize(str(file), tmp_path / "out", ask, recipe)["reload_difference"] == 0
    assert read_json(tmp_path / "out" / "config.json")["model_type"] == staged.model.config.model_type
    low = tmp_path / "low.gguf"
    writer = gguf.GGUFWriter(low, "qwen3")
    writer.add_tensor(
        "token_embd.weight", torch.zeros(4, 18, dtype=torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.Q4_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"holds tensors below 8 bits \(1 x Q4_0\)"):
        load_full(str(low), CPU)
    (tmp_path / "no.gguf").write_bytes(b"GGUX")
    with pytest.raises(ArtifactCorruptError, match="cannot be read as GGUF"):
        load_full(str(tmp_path / "no.gguf"), CPU)


def test_a_hub_name_is_brought_here_whole_and_read_from_there(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def snapshot(name: str, **how: object) -> str:
        asked.append(how)
        if name == "owner/absent":
            raise OSError("404 Client Error")
        return str(checkpoint("llama", blocks=2))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    staged, tokenizer = load_full("owner/name", CPU)
    assert staged.origin.folder == checkpoint("llama", blocks=2)
    assert "tokenizer.json" in staged.origin.companions
    assert tokenizer.bos_token_id == 0
    assert all("*.bin" in how["ignore_patterns"] for how in asked)  # type: ignore[operator]
    with pytest.raises(InputError, match="owner/absent: is no local folder, and the hub gave none: 404"):
        load_full("owner/absent", CPU)


def test_experts_are_rounded_with_the_moments_of_their_own_tokens(tiny: Callable[[str], Path]) -> None:
    staged, _ = load_full(str(tiny("Mixtral")), CPU)
    gate = staged.model.get_submodule("model.layers.0.mlp.gate")
    gate.weight.data[2] = 0  # with the others far apart, hardly a token chooses this expert
    gate.weight.data[[0, 1, 3]] *= 50
    seen: dict[str, int] = {}

    def visit(path: str, moments: Moments) -> None:
        seen[path] = moments.tokens
        if ".experts." in path:
            assert moments.cross is None
            assert moments.hessian.isfinite().all()

    walk(staged, IDS[:1], visit)
    assert set(seen) == set(staged.originals)
    chosen = [seen[f"model.layers.0.mlp.experts.{expert}.w1"] for expert in range(4)]
    assert sum(chosen) == 2 * IDS[:1].numel()  # two experts a token
    assert staged.untaught == {path for path, tokens in seen.items() if tokens == 0}
    round_plan(staged, rounding_named("gptq"), dict.fromkeys(staged.originals, grid_width(2, 32)), IDS)
