"""The main job, end to end, on tiny checkpoints: files, bytes, reloaded logits, resumption."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import apportion
from apportion.bits.apply import apply
from apportion.bits.checkpoint import packed_entries
from apportion.bits.companions import save_tokenizer
from apportion.bits.game import encode, load_samples, widths_by_path
from apportion.bits.perplexity import perplexity
from apportion.bits.plan import allocate, budget_from_bits, estimate, plan_from
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.quantizer import take_samples
from apportion.bits.recipe import Recipe
from apportion.core.artifact import read_json, read_manifest
from apportion.core.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactExistsError,
    ArtifactMismatchError,
    BudgetError,
    InputError,
    NumericError,
)
from apportion.core.log import read_log
from apportion.formats.safetensors import file_bytes
from tests.recipes import small
from tests.tiny_models import KINDS

RELOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.inference_mode():
    torch.save(model(torch.arange(2, 42).view(2, 20)).logits, sys.argv[2])
"""


def paper(**settings) -> QuantizeRequest:
    return QuantizeRequest(method="coopq", **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("players", ["blocks", "linears"])
def test_a_fresh_process_loads_the_same_logits(checkpoint, text_file, tmp_path, kind, players):
    recipe = small(text_file, widths=(2, 3, 4), players=players)
    ask = paper(avg_bits=2.9)
    out = tmp_path / "out"
    result = quantize(str(checkpoint(kind)), out, ask, recipe)
    plan = plan_from(read_json(out / "plan.json"))
    quantizer = open_model(str(checkpoint(kind)), recipe, ask)
    quantizer.bank.put_all(plan.assignment)
    with torch.inference_mode():
        ours = quantizer.staged.model(torch.arange(2, 42).view(2, 20)).logits
    subprocess.run([sys.executable, "-c", RELOAD, str(out), str(tmp_path / "l.pt")], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "l.pt", weights_only=True), ours)
    assert len(set(plan.assignment)) > 1
    assert result["avg_bits"] <= 2.9
    widths = widths_by_path(quantizer.staged, plan.costs, plan.assignment)
    size = (out / "model.safetensors").stat().st_size
    predicted = file_bytes(packed_entries(quantizer.staged, widths, quantizer.applied.format))
    assert size == result["bytes"] == plan.total_bytes == predicted


def test_the_result_says_what_was_measured(checkpoint, text_file, tmp_path):
    result = quantize(str(checkpoint()), tmp_path / "out", paper(avg_bits=3.0), small(text_file))
    keys = "avg_bits bytes nll_fp nll_high nll_plan block_forwards naive_block_forwards evaluations seconds plan out"
    assert set(keys.split()) <= set(result)
    assert result["block_forwards"] < result["naive_block_forwards"]
    assert set(result["plan"].values()) <= {"w2g32", "w4g32"}
    manifest = read_manifest(tmp_path / "out")
    assert {**manifest["result"], "out": result["out"]} == result
    assert {"plan.json", "sensitivity.json", "samples/values.log", "report/report.md"} <= set(manifest["files"])
    plan = plan_from(read_json(tmp_path / "out" / "plan.json"))
    assert plan.measured_nll == pytest.approx(result["nll_plan"])
    records = read_log(tmp_path / "out" / "samples" / "values.log")[1]
    values = {record["assignment"]: float(np.mean(record["nll"])) for record in records}
    assert values[encode(plan.assignment)] == result["nll_plan"]
    reloaded = perplexity(str(tmp_path / "out"), text_file, window_tokens=24, windows=6, dtype="float32")
    original = perplexity(str(checkpoint()), text_file, window_tokens=24, windows=6, dtype="float32")
    assert reloaded.nll != original.nll
    assert abs(reloaded.nll - original.nll) < 2


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_auto_keeps_the_best_of_what_it_measured(checkpoint, text_file, tmp_path, rounding):
    recipe = small(text_file, widths=(2, 3, 4), players="linears", rounding=rounding, rounding_windows=8)
    ask = QuantizeRequest(avg_bits=3.0, evaluations=60, finalists=2)
    result = quantize(str(checkpoint()), tmp_path / "out", ask, recipe)
    plan = plan_from(read_json(tmp_path / "out" / "plan.json"))
    assert result["method"] == "auto"
    assert plan.avg_bits <= 3.0
    records = read_log(tmp_path / "out" / "samples" / "values.log")[1]
    values = {record["assignment"]: float(np.mean(record["nll"])) for record in records}
    tried = {item["assignment"]: item["nll"] for item in plan.tried if "nll" in item}
    assert all(values[widths] == nll for widths, nll in tried.items())
    assert "1" * 16 in values  # the uniform plan is among the candidates
    assert f"(found by: {plan.source}" in (tmp_path / "out" / "report" / "report.md").read_text()
    if rounding == "nearest":
        assert result["nll_plan"] == min(tried.values()) <= values["1" * 16]
        assert result["evaluations"] <= 60 + 10  # and the frontier of the report
    else:
        written = {item["assignment"]: item for item in plan.tried if "nll_written" in item}
        assert "1" * 16 in written
        kept = min(written.values(), key=lambda item: item["nll_judged"])
        assert (kept["assignment"], kept["nll_written"]) == (encode(plan.assignment), result["nll_plan"])
        assert result["judged_on"] == "16 windows unseen by search, rounding"
    again = quantize(str(checkpoint()), tmp_path / "again", ask, recipe)
    assert again["plan"] == result["plan"]


def test_sampling_stops_by_itself_when_plans_no_longer_change(checkpoint, text_file, tmp_path):
    ask = paper(avg_bits=3.0, until_stable=True)
    result = quantize(str(checkpoint()), tmp_path / "out", ask, small(text_file, permutations=200))
    assert 20 <= result["permutations"] < 200
    assert result["permutations"] % 5 == 0


def test_a_byte_budget_holds_for_the_file_on_disk(checkpoint, text_file, tmp_path):
    limits = {}
    for bits in (2.0, 4.0):
        out = tmp_path / f"at{bits}"
        limits[bits] = quantize(str(checkpoint()), out, paper(avg_bits=bits), small(text_file))["bytes"]
    limit = (limits[2.0] + limits[4.0]) // 2
    result = quantize(str(checkpoint()), tmp_path / "out", paper(max_bytes=limit), small(text_file))
    assert limits[2.0] < (tmp_path / "out" / "model.safetensors").stat().st_size == result["bytes"] <= limit


def test_steps_alone_give_the_same_as_all_at_once(checkpoint, text_file, tmp_path):
    recipe = small(text_file)
    whole = quantize(str(checkpoint()), tmp_path / "whole", paper(avg_bits=3.0), recipe)
    sensitivity = estimate(take_samples(open_model(str(checkpoint()), recipe), tmp_path / "samples"))
    plan = apportion.allocate(sensitivity, apportion.budget_from_bits(sensitivity.costs, 3.0))
    apply(str(checkpoint()), plan, tmp_path / "steps")
    assert plan.by_name() == whole["plan"]
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "steps"))
    assert one.read_bytes() == other.read_bytes()


def test_without_calibration_the_model_writes_its_own_and_says_so(checkpoint, tmp_path):
    recipe = small(None, permutations=2)
    first = quantize(str(checkpoint()), tmp_path / "a", paper(avg_bits=3.0), recipe)
    second = quantize(str(checkpoint()), tmp_path / "b", paper(avg_bits=3.0), recipe)
    assert first["calibration"] == "sampled from the model itself"
    assert first["nll_fp"] == second["nll_fp"]
    windows = load_samples(tmp_path / "a" / "samples").settings["calibration"]
    assert windows == load_samples(tmp_path / "b" / "samples").settings["calibration"]


def test_resuming_a_finished_run_returns_it_and_another_run_is_refused(checkpoint, text_file, tmp_path):
    out, model, recipe = tmp_path / "out", str(checkpoint()), small(text_file)
    first = quantize(model, out, paper(avg_bits=3.0), recipe)
    assert quantize(model, out, paper(avg_bits=3.0), recipe, resume=True) == first
    with pytest.raises(ArtifactExistsError, match="not empty"):
        quantize(model, out, paper(avg_bits=3.0), recipe)
    with pytest.raises(ArtifactMismatchError, match="another permutations"):
        quantize(model, out, paper(avg_bits=3.0), small(text_file, permutations=5), resume=True)


def test_samples_of_another_model_or_text_are_refused_by_digest(checkpoint, text_file, tmp_path):
    table = open_model(str(checkpoint()), small(text_file))
    take_samples(table, tmp_path / "s")
    (tmp_path / "s" / "samples.json").unlink()
    with pytest.raises(ArtifactMismatchError, match="another model"):
        take_samples(open_model(str(checkpoint("qwen3")), small(text_file)), tmp_path / "s", resume=True)
    other = tmp_path / "other.txt"
    other.write_text("some other words, " * 500)
    with pytest.raises(ArtifactMismatchError, match="another calibration"):
        take_samples(open_model(str(checkpoint()), small(other)), tmp_path / "s", resume=True)
    with pytest.raises(ArtifactMismatchError, match="another widths"):
        take_samples(open_model(str(checkpoint()), small(text_file, group_size=16)), tmp_path / "s", resume=True)


def test_a_rounding_sees_no_more_windows_than_asked_and_reads_them_once(checkpoint):
    quantizer = open_model(str(checkpoint()), small(None, rounding="gptq", rounding_windows=2))
    assert quantizer.rounding_text.shape == (2, 24)
    assert quantizer.rounding_text is quantizer.rounding_text


@pytest.mark.parametrize("refusal", [OSError(28, "No space left on device"), Exception("No space left on device")])
def test_a_tokenizer_that_cannot_be_written_is_an_error(checkpoint, tmp_path, refusal):
    class Full:
        def save_pretrained(self, folder: str) -> None:
            raise refusal

    with pytest.raises(ArtifactError, match="cannot be written: No space left"):
        save_tokenizer(tmp_path, open_model(str(checkpoint()), Recipe(group_size=32)).staged.model, Full())


def test_long_steps_before_the_game_show_their_progress(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("apportion.core.progress.SHOW_AFTER_S", 0.0)
    take_samples(open_model(str(checkpoint()), small(None, permutations=1)), tmp_path / "s")
    shown = capsys.readouterr()
    assert shown.out == ""
    for step in ("sampling text", "full precision", "coalitions"):
        assert f"{step}: " in shown.err


def test_kept_windows_of_another_seed_or_size_are_refused(checkpoint, tmp_path):
    model, own = str(checkpoint()), small(None, permutations=1)
    first = take_samples(open_model(model, own), tmp_path / "s")
    again = take_samples(open_model(model, replace(own, permutations=2)), tmp_path / "s", resume=True)
    assert (len(first.orders), len(again.orders)) == (1, 2)
    for name, changed in (("windows", 5), ("window_tokens", 20), ("seed", 1)):
        with pytest.raises(ArtifactMismatchError, match=f"another {name}"):
            take_samples(open_model(model, replace(own, **{name: changed})), tmp_path / "s", resume=True)


def test_a_resumed_sampling_is_judged_on_the_same_values(checkpoint, text_file, tmp_path):
    """The log may know what later permutations asked for; no look and no estimate sees it."""
    table, looks = open_model(str(checkpoint(blocks=6)), small(text_file, permutations=30)), []

    def third(samples) -> bool:
        looks.append((len(samples.orders), [*samples.values]))
        return len(looks) == 3

    take_samples(table, tmp_path / "s", stop=third)
    first = looks.copy()
    looks.clear()
    (tmp_path / "s" / "samples.json").unlink()
    resumed = take_samples(table, tmp_path / "s", resume=True, stop=third)
    assert looks == first
    assert [*load_samples(tmp_path / "s").values] == [*resumed.values]
    fewer = open_model(str(checkpoint(blocks=6)), small(text_file, permutations=2))
    own = take_samples(fewer, tmp_path / "fewer")
    assert [*take_samples(fewer, tmp_path / "s", resume=True).values] == [*own.values]


def test_a_damaged_samples_folder_is_an_error(checkpoint, text_file, tmp_path):
    take_samples(open_model(str(checkpoint()), small(text_file)), tmp_path / "s")
    saved = tmp_path / "s" / "samples.json"
    whole = saved.read_text()
    saved.write_text(whole.replace('"orders"', '"order"'))
    with pytest.raises(ArtifactCorruptError, match="'orders'"):
        load_samples(tmp_path / "s")
    saved.write_text(whole)
    log = tmp_path / "s" / "values.log"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(ArtifactCorruptError, match=r"coalition '....' is missing"):
        load_samples(tmp_path / "s")
    log.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_samples(tmp_path / "s")


def test_a_cut_last_line_is_continued_and_a_changed_middle_is_refused(checkpoint, text_file, tmp_path):
    table = open_model(str(checkpoint()), small(text_file))
    whole = take_samples(table, tmp_path / "s")
    log = tmp_path / "s" / "values.log"
    (tmp_path / "s" / "samples.json").unlink()
    data = log.read_bytes()
    log.write_bytes(data[:-7])
    again = take_samples(table, tmp_path / "s", resume=True)
    assert again.counts["evaluations"] == 1
    assert {k: v.tolist() for k, v in again.values.items()} == {k: v.tolist() for k, v in whole.values.items()}
    lines = log.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"nll", b"nlL")
    log.write_bytes(b"".join(lines))
    (tmp_path / "s" / "samples.json").unlink()
    with pytest.raises(ArtifactCorruptError, match="line 4"):
        take_samples(table, tmp_path / "s", resume=True)


def test_a_changed_file_is_found_by_its_digest(checkpoint, text_file, tmp_path):
    quantize(str(checkpoint()), tmp_path / "out", paper(avg_bits=3.0), small(text_file))
    path = tmp_path / "out" / "plan.json"
    path.write_text(path.read_text().replace("coopq", "coopQ"))
    with pytest.raises(ArtifactCorruptError, match=r"plan\.json"):
        read_manifest(tmp_path / "out")


def test_refusals_come_before_any_work(checkpoint, text_file, tmp_path):
    model = str(checkpoint())
    with pytest.raises(InputError, match=r"(?s)3 values cannot be used.*--widths.*--windows 0.*no such file"):
        quantize(
            model,
            tmp_path / "a",
            paper(avg_bits=3.0),
            small(tmp_path / "no", widths=(2, 5), windows=0),
        )
    assert not (tmp_path / "a").exists()
    for wrong in ({"group_size": 48}, {"windows": 10_000}, {"window_tokens": 100_000}):
        with pytest.raises(InputError):
            quantize(model, tmp_path / str(wrong), paper(avg_bits=3.0), small(text_file, **wrong))
    with pytest.raises(BudgetError, match="bytes short"):
        quantize(model, tmp_path / "b", paper(max_bytes=1000), small(text_file))
    with pytest.raises(BudgetError, match="exactly one"):
        quantize("/absent", tmp_path / "c", paper(), small(text_file))
    with pytest.raises(InputError, match="SPQE measures only w2g32 and w4g32"):
        quantize(
            "/absent", tmp_path / "c", QuantizeRequest(3.0, method="regression"), small(text_file, widths=(2, 3, 4))
        )
    with pytest.raises(InputError, match="--evaluations 5: expected at least"):
        quantize(model, tmp_path / "c", QuantizeRequest(3.0, evaluations=5), small(text_file))
    assert not list(tmp_path.glob("[bc]"))  # so that the same --out serves the corrected command
    quantize(model, tmp_path / "done", paper(avg_bits=3.0), small(text_file))
    with pytest.raises(InputError, match="quantized already"):
        open_model(str(tmp_path / "done"), small(text_file))


def test_sampling_that_stops_by_itself_is_refused_where_there_is_none(text_file, tmp_path):
    with pytest.raises(InputError, match=r"(?s)--until-stable: --method auto draws no permutations.*--evaluations"):
        quantize("/absent", tmp_path / "out", QuantizeRequest(3.0, until_stable=True), small(text_file))


def test_untied_linears_are_refused_for_servers_that_fuse_them(checkpoint, text_file, tmp_path):
    free = small(text_file, players="linears", untie=True)
    with pytest.raises(InputError, match=r"(?s)--untie: nearest writes compressed-tensors.*apportion\.load"):
        quantize("/absent", tmp_path / "out", paper(avg_bits=3.0), free)
    model = str(checkpoint(blocks=2))
    sensitivity = estimate(take_samples(open_model(model, free), tmp_path / "samples"))
    found = allocate(sensitivity, budget_from_bits(sensitivity.costs, 3.0))
    names = [name.split()[-1] for name in found.by_name()]
    split = replace(found, assignment=tuple(0 if name in ("k_proj", "down_proj") else 1 for name in names))
    split = replace(split, budget_bytes=found.player_bytes * 4)
    with pytest.raises(InputError, match=r"(?s)fuse.*q_proj w3g32.*k_proj w2g32.*--apply-rounding quanto or hqq"):
        apply(model, split, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    kept = apply(model, split, tmp_path / "hqq", rounding="hqq")
    assert kept["plan"] == split.by_name()
    level = replace(split, assignment=tuple(0 if name == "down_proj" else 1 for name in names))
    assert apply(model, level, tmp_path / "level")["format"] == "compressed-tensors"


def test_untied_linears_in_a_format_of_their_own(checkpoint, text_file, tmp_path):
    free = small(text_file, players="linears", untie=True, apply_rounding="hqq")
    result = quantize(str(checkpoint(blocks=2)), tmp_path / "out", paper(avg_bits=3.0), free)
    assert len(result["plan"]) == 14
    assert apportion.load(tmp_path / "out")(torch.arange(2, 42).view(2, 20)).logits.isfinite().all()


def test_a_plan_is_not_applied_to_another_model(checkpoint, text_file, tmp_path):
    quantize(str(checkpoint()), tmp_path / "out", paper(avg_bits=3.0), small(text_file))
    plan = plan_from(read_json(tmp_path / "out" / "plan.json"))
    with pytest.raises(ArtifactMismatchError, match="made for the model"):
        apply(str(checkpoint("qwen3")), plan, tmp_path / "x")


def test_applying_again_is_resumed_and_another_plan_is_refused(checkpoint, text_file, tmp_path):
    model = str(checkpoint())
    found = estimate(take_samples(open_model(model, small(text_file)), tmp_path / "s"))
    plan, other = (allocate(found, budget_from_bits(found.costs, bits)) for bits in (3.0, 2.5))
    first = apply(model, plan, tmp_path / "out")
    assert apply(model, plan, tmp_path / "out", resume=True) == first
    with pytest.raises(ArtifactMismatchError, match="another plan"):
        apply(model, other, tmp_path / "out", resume=True)
    with pytest.raises(ArtifactExistsError, match="holds a run of 'apply'"):
        quantize(str(checkpoint()), tmp_path / "out", paper(avg_bits=3.0), small(text_file), resume=True)
    with pytest.raises(InputError, match="--rounding-windows 0"):
        apply(model, plan, tmp_path / "x", recipe=Recipe(rounding_windows=0))
    (tmp_path / "out" / "manifest.json").unlink()
    assert apply(model, plan, tmp_path / "out", resume=True) == first
    assert {**read_manifest(tmp_path / "out")["result"], "out": str(tmp_path / "out")} == first


def test_infinite_weights_are_named(checkpoint, text_file, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(checkpoint(), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericError, match="not finite"):
        quantize(str(broken), tmp_path / "out", paper(avg_bits=3.0), small(text_file))


def test_predictions_are_those_of_the_saved_sensitivity(checkpoint, text_file, tmp_path):
    quantize(str(checkpoint()), tmp_path / "out", QuantizeRequest(method="regression", avg_bits=3.0), small(text_file))
    frontier = json.loads((tmp_path / "out" / "frontier.json").read_text())["plans"]
    found = estimate(load_samples(tmp_path / "out" / "samples"), "regression")
    assert frontier[0]["avg_bits"] == 2.0
    assert frontier[-1]["avg_bits"] == 4.0
    assert np.isfinite([item["measured_nll"] for item in frontier]).all()
    assert [width.bits for width in found.costs.widths] == [2, 4]
