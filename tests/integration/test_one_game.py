"""A run plays one game: each text tokenised and embedded once; widths have names; what is open the method chooses."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import apportion
from apportion.bits.game import load_samples
from apportion.bits.plan import plan_from
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.core.artifact import read_json
from tests.recipes import small


def test_a_recipe_without_players_is_the_methods_own_in_python_as_on_the_command_line(checkpoint, text_file, tmp_path):
    ask = QuantizeRequest(avg_bits=3.0, evaluations=40)
    result = quantize(str(checkpoint(blocks=2)), tmp_path / "out", ask, small(text_file))
    assert len(result["plan"]) == 8  # linears with q/k/v and gate/up tied, not blocks
    saved = read_json(tmp_path / "out" / "run.json")
    assert (saved["players"], saved["permutations"]) == ("linears", 0)
    assert [width.bits for width in load_samples(tmp_path / "out" / "samples").costs.widths] == [2, 3, 4]


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_run_embeds_and_tokenises_each_text_once(checkpoint, text_file, tmp_path, monkeypatch, rounding):
    from apportion.models import text

    read: list[Path] = []
    own = text.read_text
    monkeypatch.setattr(text, "read_text", lambda path, *rest: read.append(path) or own(path, *rest))
    recipe = small(text_file, rounding=rounding, rounding_windows=8)
    ask = QuantizeRequest(avg_bits=3.0, evaluations=40, finalists=2)
    result = quantize(str(checkpoint(blocks=2)), tmp_path / "out", ask, recipe)
    assert read == [text_file]
    assert result["execution"]["tokenised"] == 1
    texts = {"nearest": 1, "gptq": 3}[rounding]  # to search on, for the moments, to judge finalists on
    assert result["execution"]["embeddings"] == texts + 1  # and the window of the check that the cut is right
    assert result["execution"]["graphs"] == 0


def test_group_sizes_are_part_of_a_width(checkpoint, text_file, tmp_path):
    recipe = small(text_file, widths=("w2g64", "w2g32", "w3g32", "4"), players="linears")
    result = quantize(str(checkpoint()), tmp_path / "out", QuantizeRequest(avg_bits=2.6, evaluations=60), recipe)
    assert set(result["plan"].values()) <= {"w2g64", "w2g32", "w3g32", "w4g32"}
    assert len(set(result["plan"].values())) > 1
    assert result["avg_bits"] <= 2.6
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    for name, group in config.items():
        assert name == f"w{group['weights']['num_bits']}g{group['weights']['group_size']}"
    quantizer = open_model(str(checkpoint()), recipe)
    plan = plan_from(read_json(tmp_path / "out" / "plan.json"))
    quantizer.bank.put_all(plan.assignment)
    ids = torch.arange(2, 42).view(2, 20)
    with torch.inference_mode():
        assert torch.equal(apportion.load(tmp_path / "out")(ids).logits, quantizer.staged.model(ids).logits)


def test_what_is_left_open_is_what_the_machine_affords_and_says_why(checkpoint, text_file, tmp_path):
    model, ask = str(checkpoint(blocks=2)), QuantizeRequest(avg_bits=3.0, evaluations=20, finalists=1, device="cpu")
    text = small(text_file, rounding=None, rounding_windows=8)
    made = quantize(model, tmp_path / "best", ask, text)
    assert made["apply_rounding"] == "gptq"
    assert made["choice"]["reason"].startswith("no GPU, and a small model")
    assert made["tuned"]["asked"] == made["choice"]["tune"] == 60
    assert made["choice"]["reason"] in (tmp_path / "best" / "report" / "report.md").read_text()
    assert not (tmp_path / "best" / "work").exists()  # the pieces that a killed run would have left
    quick = quantize(model, tmp_path / "fast", QuantizeRequest(**{**asdict(ask), "fast": True}), text)
    assert (quick["apply_rounding"], quick["tuned"]) == ("nearest", None)
    own = quantize(model, tmp_path / "own", ask, small(text_file, rounding="nearest"))
    assert (own["apply_rounding"], own["tuned"], own["choice"]) == ("nearest", None, None)


def test_uniform_plans_stand_beside_the_plan_that_was_kept(checkpoint, text_file, tmp_path):
    result = quantize(
        str(checkpoint(blocks=2)), tmp_path / "out", QuantizeRequest(avg_bits=3.0, evaluations=30), small(text_file)
    )
    rows = {row["width"]: row for row in result["uniform"]}
    assert [(row["width"], row["fits"]) for row in result["uniform"]] == [
        ("w2g32", True),
        ("w3g32", True),
        ("w4g32", False),
    ]
    assert result["nll_plan"] <= rows["w3g32"]["nll_sampled"]
