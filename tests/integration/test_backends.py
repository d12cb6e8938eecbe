"""Every rounding end to end: bytes as predicted, the same logits in a fresh process, plans applied across roundings."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apportion
from apportion.bits.apply import apply
from apportion.bits.checkpoint import packed_entries
from apportion.bits.game import widths_by_path
from apportion.bits.perplexity import perplexity
from apportion.bits.plan import plan_from
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import rounding_named
from apportion.core.artifact import read_json, read_manifest
from apportion.core.errors import ArtifactCorruptError, BudgetError, InputError, MissingExtraError
from apportion.formats import grid_width, shape_bytes
from apportion.formats.safetensors import file_bytes
from apportion.models.load import load
from apportion.models.own import runs_kernels_of_quanto
from tests import recipes
from tests.tiny_models import KINDS

IDS = torch.arange(2, 42).view(2, 20)
RELOAD = """
import sys, torch, apportion
ids = torch.arange(2, 42).view(2, 20)
with torch.inference_mode():
    for folder in sys.argv[1:]:
        found = [apportion.load(folder, dense=dense)(ids).logits for dense in (False, True)]
        torch.save(found, folder + ".pt")
"""


def small(text: Path, **changes) -> Recipe:
    return recipes.small(text, **{"permutations": 3, "rounding_windows": 12, **changes})


def logits_with(staged, weights) -> torch.Tensor:
    for path, weight in weights.items():
        staged.model.get_submodule(path).weight.data = weight.dequantize(torch.float32)
    with torch.inference_mode():
        found = staged.model(IDS).logits
    staged.restore()
    return found


CASES = [
    ("gptq", "llama", torch.bfloat16),
    ("gptq", "gemma2", torch.float32),
    *(("quanto", kind, torch.bfloat16) for kind in KINDS),
    *(("hqq", kind, torch.bfloat16) for kind in KINDS),
    ("hqq", "llama", torch.float32),
]


def case_name(case: tuple[str, str, torch.dtype]) -> str:
    return f"{case[0]}-{case[1]}-{str(case[2]).removeprefix('torch.')}"


def case_recipe(case: tuple[str, str, torch.dtype], text: Path) -> Recipe:
    widths = (2, 4) if case[0] == "quanto" else (2, 3, 4)
    return small(text, rounding=case[0], widths=widths, players="linears")


@pytest.fixture(scope="module")
def reloaded(checkpoint, text_file, tmp_path_factory) -> Path:
    """A folder for every case, and beside each the logits that one fresh process had of it."""
    root = tmp_path_factory.mktemp("backends")
    for case in CASES:
        model = str(checkpoint(case[1], blocks=2, dtype=case[2]))
        ask = QuantizeRequest(avg_bits=2.9, method="shapley")
        quantize(model, root / case_name(case), ask, case_recipe(case, text_file))
    folders = [str(root / case_name(case)) for case in CASES]
    subprocess.run([sys.executable, "-c", RELOAD, *folders], check=True, capture_output=True)
    return root


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_a_fresh_process_loads_the_same_logits(reloaded, checkpoint, text_file, case):
    out = reloaded / case_name(case)
    plan, result = plan_from(read_json(out / "plan.json")), read_json(out / "result.json")
    assert len(set(plan.assignment)) > 1
    quantizer = open_model(str(checkpoint(case[1], blocks=2, dtype=case[2])), case_recipe(case, text_file))
    if not quantizer.rounding.needs_hessian:
        quantizer.rounded()  # as in the run: written from what the bank holds
    ours = logits_with(quantizer.staged, quantizer.written(plan.assignment).packed)
    packed, dense = torch.load(f"{out}.pt", weights_only=True)
    assert torch.equal(dense, ours)
    assert torch.equal(packed, ours)
    paths = widths_by_path(quantizer.staged, plan.costs, plan.assignment)
    predicted = file_bytes(packed_entries(quantizer.staged, paths, quantizer.applied.format))
    assert (out / "model.safetensors").stat().st_size == result["bytes"] == plan.total_bytes == predicted
    assert result["bytes"] <= plan.budget_bytes + quantizer.costs.fixed_bytes
    assert result["format"] == quantizer.applied.format.name
    found = perplexity(str(out), text_file, window_tokens=24, windows=4, dtype="float32")
    assert 0 < found.nll < 12


@pytest.mark.parametrize("name", ["quanto", "hqq"])
def test_transformers_refuses_these_formats_rather_than_guess(reloaded, name):
    from transformers import AutoModelForCausalLM

    with pytest.raises((ValueError, KeyError), match=r"mixed|quant_config"):
        AutoModelForCausalLM.from_pretrained(reloaded / f"{name}-llama-bfloat16")


def test_libraries_own_modules_hold_the_packed_weights(reloaded):
    from hqq.core.quantize import HQQLinear
    from optimum.quanto import QLinear

    for name, kind in (("quanto", QLinear), ("hqq", HQQLinear)):
        out = reloaded / f"{name}-llama-bfloat16"
        assert sum(isinstance(module, kind) for module in load(out).modules()) == 14
        assert not any(isinstance(module, kind) for module in load(out, dense=True).modules())
        assert runs_kernels_of_quanto(load(out)) == (name == "quanto")
        assert not runs_kernels_of_quanto(load(out, dense=True))


def test_a_plan_of_one_rounding_is_applied_with_another(checkpoint, text_file, tmp_path):
    model = str(checkpoint(blocks=2))
    recipe = small(text_file, apply_rounding="gptq", permutations=4)
    result = quantize(model, tmp_path / "out", QuantizeRequest(avg_bits=3), recipe)
    assert (result["rounding"], result["apply_rounding"]) == ("nearest", "gptq")
    assert read_manifest(tmp_path / "out")["result"]["apply_rounding"] == "gptq"
    assert result["nll_plan"] != result["nll_plan_sampled"]
    # nll_plan is that of the file, measured on the samples' own windows by full precision's predictions
    from apportion.bits.rounding import full_precision_hidden
    from apportion.core.device import place
    from apportion.models.load import load_staged
    from apportion.models.text import load_calibration

    staged = load_staged(str(tmp_path / "out"), place("cpu", "float32"))
    windows = load_calibration(tmp_path / "out" / "samples" / "windows.safetensors").windows
    teacher = full_precision_hidden(load_staged(model, place("cpu", "float32")), windows)
    assert float(staged.window_nll(windows, teacher=teacher).mean()) == result["nll_plan"]


def test_apply_counts_bytes_in_the_format_it_writes(checkpoint, text_file, tmp_path):
    model = str(checkpoint(blocks=2))
    recipe = small(text_file)
    quantize(model, tmp_path / "out", QuantizeRequest(avg_bits=3, method="shapley"), recipe)
    plan = plan_from(read_json(tmp_path / "out" / "plan.json"))
    # quanto keeps a shift beside every scale: more bytes at the same width
    with pytest.raises(BudgetError, match="more than the"):
        apply(model, plan, tmp_path / "quanto", rounding="quanto")
    result = apply(model, plan, tmp_path / "gptq", rounding="gptq", recipe=recipe)
    assert (result["rounding"], result["apply_rounding"]) == ("nearest", "gptq")
    assert {**read_manifest(tmp_path / "gptq")["result"], "out": result["out"]} == result
    assert apportion.load(tmp_path / "gptq")(IDS).logits.isfinite().all()
    counted = quantize(
        model, tmp_path / "q", QuantizeRequest(avg_bits=3, method="shapley"), small(text_file, apply_rounding="quanto")
    )
    assert counted["format"] == "quanto"


def test_a_gptq_checkpoint_is_what_its_text_makes_of_it(checkpoint, text_file, tmp_path):
    model = str(checkpoint(blocks=2))
    ask, recipe = QuantizeRequest(avg_bits=3, method="shapley"), small(text_file, rounding="gptq")
    first, again = (quantize(model, tmp_path / name, ask, recipe) for name in "ab")
    assert first["nll_plan"] == again["nll_plan"]
    left, right = (read_manifest(tmp_path / name)["files"]["model.safetensors"] for name in "ab")
    assert left == right


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    size=st.sampled_from([4, 12, 32, 64]),
    name=st.sampled_from(["quanto", "hqq"]),
    bits=st.sampled_from([2, 3, 4, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_codes_to_bytes_to_codes_for_ragged_shapes(rows, groups, size, name, bits, dtype):
    rounding, width = rounding_named(name), grid_width(bits, size)
    if bits not in rounding.format.bits:
        return
    weight = torch.randn(rows, groups * size, generator=torch.Generator().manual_seed(rows)).to(dtype)
    if name == "hqq" and bits in (2, 4) and rows * groups % (8 // bits):
        with pytest.raises(InputError, match="multiple"):
            rounding.round(weight, width, None)
        return
    if name == "quanto" and rows * groups == 1:
        with pytest.raises(InputError, match="single group"):
            rounding.round(weight, width, None)
        return
    shapes = rounding.format.shapes(width, rows, groups * size, dtype)
    rounded = rounding.round(weight, width, None)
    saved = {suffix: tensor.clone() for suffix, tensor in rounded.tensors().items()}
    assert {suffix: (tensor.dtype, tuple(tensor.shape)) for suffix, tensor in saved.items()} == dict(shapes)
    assert sum(tensor.nbytes for tensor in saved.values()) == shape_bytes(shapes)
    again = rounding.format.unpack(saved, (rows, groups * size), width)
    for compute in (torch.float32, torch.bfloat16):
        decoded = rounded.dequantize(compute)
        assert decoded.dtype == compute
        assert torch.equal(again.dequantize(compute), decoded)
    assert float((rounded.dequantize(torch.float32) - weight.float()).norm() / weight.float().norm()) < 0.75


def test_a_missing_package_names_its_extra(monkeypatch):
    for name, module, extra in (("quanto", "optimum.quanto", "quanto"), ("hqq", "hqq.core.quantize", "hqq")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"apportion\[{extra}\]"):
            rounding_named(name)


def test_damaged_folders_are_refused(reloaded, tmp_path):
    out = Path(shutil.copytree(reloaded / "hqq-llama-bfloat16", tmp_path / "out"))
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(config.replace('"width": "w2g32"', '"width": "w3g32"'))
    with pytest.raises(ArtifactCorruptError, match="differs from the manifest"):
        load(out)
    (out / "manifest.json").unlink()
    with pytest.raises(ArtifactCorruptError, match="expected a tensor of shape"):
        load(out)


def test_folders_of_before_widths_had_names_are_still_read(reloaded, tmp_path):
    """They say bits for every linear and one group size for all."""
    out = Path(shutil.copytree(reloaded / "hqq-llama-bfloat16", tmp_path / "out"))
    config = json.loads((out / "config.json").read_text())
    saved = config["quantization_config"]
    saved["linears"] = {
        path: {"bits": int(own["width"][1]), "shape": own["shape"]} for path, own in saved["linears"].items()
    }
    saved["group_size"] = 32
    (out / "config.json").write_text(json.dumps(config))
    (out / "manifest.json").unlink()
    assert torch.equal(load(out)(IDS).logits, load(reloaded / "hqq-llama-bfloat16")(IDS).logits)


@pytest.mark.parametrize(
    ("rounding", "widths"),
    [("nearest", ("w3g64", "w2g8")), ("nearest", ("w2g64", "w2g4", "w3g64")), ("hqq", (2, 3, 4)), ("quanto", (2, 4))],
)
def test_no_plan_takes_more_bytes_than_were_predicted(rounding, widths, checkpoint):
    recipe = Recipe(widths=widths, rounding=rounding, group_size=32, players="linears")
    quantizer = open_model(str(checkpoint("llama")), recipe)
    staged, costs = quantizer.staged, quantizer.costs
    drawn = np.random.default_rng(0).integers(len(widths), size=(50, len(costs.players))).tolist()
    for plan in [*map(costs.uniform, range(len(widths))), *map(tuple, drawn)]:
        entries = packed_entries(staged, widths_by_path(staged, costs, plan), quantizer.applied.format)
        assert file_bytes(entries) <= costs.spent(plan) + costs.fixed_bytes


@pytest.mark.parametrize("widths", [("w3g64", "w2g8"), ("w2g32", "w2g16", "w2g8"), ("w2g8", "w3g16")])
def test_widths_that_differ_in_bits_or_in_bytes_alone_are_searched(widths, checkpoint, text_file, tmp_path):
    recipe = small(text_file, widths=widths, players="blocks", group_size=32)
    quantizer = open_model(str(checkpoint("llama")), recipe)
    largest = quantizer.costs.largest()
    ask = QuantizeRequest(max_bytes=largest, keep=("embedding", "head"), evaluations=12, fast=True)
    result = quantize(str(checkpoint("llama")), tmp_path / "out", ask, recipe)
    assert result["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size <= largest
    assert all(np.isfinite(item["predicted_nll"]) for item in read_json(tmp_path / "out" / "frontier.json")["plans"])
