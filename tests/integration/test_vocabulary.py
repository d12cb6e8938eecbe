"""Embedding and head as players: tied and untied, written to the byte, loaded elsewhere, kept where asked for."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from apportion.bits.apply import apply
from apportion.bits.checkpoint import write_checkpoint
from apportion.bits.offers import Offer, offers_for, priced
from apportion.bits.plan import Budget, Plan, plan_from
from apportion.bits.plan.budget import LEFT
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import round_all, rounding_named
from apportion.bits.vocabulary import by_name, rounded
from apportion.bits.written import account_of, reloaded
from apportion.cli.bits import quantize_text
from apportion.core.artifact import Json, read_json
from apportion.core.device import place
from apportion.core.errors import ArtifactCorruptError, BudgetError, InputError
from apportion.formats import COMPRESSED_TENSORS, grid_width
from apportion.formats.safetensors import file_bytes, read_entries
from apportion.models.load import load, load_full
from apportion.models.vocabulary import vocabulary_of
from benchmarks.tiny_architectures import make
from benchmarks.vllm_rules import outside_blocks, unread
from tests.recipes import small
from tests.tiny_models import tiny_config

UNTIED, TIED = "llama", "qwen3"
LARGE = 10**9
IDS = torch.arange(2, 26)[None]
FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM
from apportion.models.load import load, load_full
own = AutoModelForCausalLM.from_pretrained if sys.argv[2] == "transformers" else load
dtype = torch.float32 if sys.argv[2] == "transformers" else "float32"
torch.save(own(sys.argv[1], dtype=dtype).eval()(torch.arange(2, 26)[None]).logits, sys.argv[3])
"""
Checkpoint = Callable[..., Path]


def whole(limit: int, **changes: Any) -> QuantizeRequest:
    """A budget of the whole file, searched quickly."""
    return QuantizeRequest(**{"max_bytes": limit, "evaluations": 16, "finalists": 1, "device": "cpu", **changes})


def blocks(text: Path) -> Recipe:
    """The paper's players: few evaluations are enough."""
    return small(text, players="blocks")


def least(quantizer: Quantizer, **changes: Any) -> int:
    """Bytes of the smallest file of all."""
    smallest = quantizer.costs.spent(quantizer.costs.uniform(0))
    return min(offer.fixed_bytes for offer in offers_for(quantizer, whole(LARGE, **changes)).choices) + smallest


def logits(folder: Path, by: str) -> torch.Tensor:
    """Of a folder loaded in a process of its own."""
    out = folder.with_name(f"{folder.name}-{by}.pt")
    words = [sys.executable, "-c", FRESH, str(folder), by, str(out)]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    found: torch.Tensor = torch.load(out)
    return found


@pytest.fixture(scope="module")
def smallest(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint, text_file: Path
) -> Callable[[str], tuple[Path, Path, Json]]:
    """Model, folder and result of a file that only a quantized embedding makes possible, once for each kind."""
    made: dict[str, tuple[Path, Path, Json]] = {}

    def make(kind: str) -> tuple[Path, Path, Json]:
        if kind not in made:
            model, out = checkpoint(kind), tmp_path_factory.mktemp(kind) / "out"
            limit = least(open_model(str(model), blocks(text_file)))
            made[kind] = (model, out, quantize(str(model), out, whole(limit), blocks(text_file)))
        return made[kind]

    return make


@pytest.mark.parametrize("kind", [UNTIED, TIED, "gemma2"])
def test_the_smallest_file_is_as_large_as_its_plan_and_loads_everywhere(
    kind: str, smallest: Callable[[str], tuple[Path, Path, Json]]
) -> None:
    model, out, result = smallest(kind)
    tied = kind != UNTIED
    found = {"embedding": "w8g32"} if tied else {"embedding": "w8g32", "head": "w4g32"}
    assert result["vocabulary"]["widths"] == found
    assert result["vocabulary"]["names"] == (["embedding"] if tied else ["embedding", "head"])
    plan = read_json(out / "plan.json")
    size = (out / "model.safetensors").stat().st_size
    assert size == result["bytes"] == plan["total_bytes"] == file_bytes(read_entries(out / "model.safetensors"))
    assert result["loads_in"] == {"transformers": ""}
    assert result["reload_difference"] < 1e-5
    stock, own = logits(out, "transformers"), logits(out, "apportion")
    assert torch.equal(stock, own) or float((stock - own).abs().max()) < 1e-5
    assert not torch.allclose(own, load(model)(IDS).logits, atol=1e-3)


@pytest.mark.parametrize("kind", [UNTIED, TIED])
def test_bytes_are_predicted_to_the_byte(kind: str, checkpoint: Checkpoint, text_file: Path, tmp_path: Path) -> None:
    """Of every choice, with all blocks at the highest width, where the bound is exact."""
    quantizer = open_model(str(checkpoint(kind)), blocks(text_file))
    width = quantizer.costs.widths[-1]
    widths = dict.fromkeys(quantizer.staged.originals, width)
    highest = quantizer.written(quantizer.costs.uniform(-1)).packed
    for index, offer in enumerate(offers_for(quantizer, whole(LARGE, embedding_bits=(4, 8))).choices):
        packed = {**highest, **rounded(quantizer.staged, offer.vocabulary)}
        out = tmp_path / str(index)
        out.mkdir()
        size, _ = write_checkpoint(
            out, quantizer.staged, widths, packed, quantizer.tokenizer, COMPRESSED_TENSORS, offer.vocabulary
        )
        assert size == offer.fixed_bytes + quantizer.costs.spent(quantizer.costs.uniform(-1)), by_name(offer.vocabulary)


def test_an_embedding_of_four_bits_is_loaded_by_us_and_said_not_to_load_elsewhere(
    checkpoint: Checkpoint, text_file: Path, tmp_path: Path
) -> None:
    model = str(checkpoint(TIED))
    limit = least(open_model(model, blocks(text_file)), embedding_bits=(4, 8))
    with pytest.raises(BudgetError, match="short of the smallest plan"):
        quantize(model, tmp_path / "eight", whole(limit), blocks(text_file))
    result = quantize(model, tmp_path / "four", whole(limit, embedding_bits=(4, 8)), blocks(text_file))
    assert result["vocabulary"]["widths"] == {"embedding": "w4g32"}
    assert "packed embedding" in result["loads_in"]["transformers"]
    assert result["servers"] == ["apportion.load"]
    assert result["reload_difference"] < 1e-5
    config = read_json(tmp_path / "four" / "config.json")["quantization_config"]
    assert outside_blocks(config, tied=True) == ["model.embed_tokens: packed and tied to the head"]


def test_a_budget_that_four_bits_leave_unused_brings_eight(
    checkpoint: Checkpoint, text_file: Path, tmp_path: Path
) -> None:
    model, recipe = str(checkpoint(TIED, blocks=2)), small(text_file, players="linears")
    found = {}
    for name, changes in {"own": {}, "asked": {"widths": (2, 3, 4)}, "tight": {}}.items():
        limit = found["asked"]["bytes"] - 1 if name == "tight" else LARGE
        ask = whole(limit, evaluations=24, keep=("embedding",))
        found[name] = quantize(model, tmp_path / name, ask, replace(recipe, **changes))
    names = {name: [width.split("g")[0] for width in one["widths"]] for name, one in found.items()}
    assert names == {"own": ["w2", "w3", "w4", "w8"], "asked": ["w2", "w3", "w4"], "tight": ["w2", "w3", "w4"]}
    assert found["own"]["bytes"] > found["asked"]["bytes"]
    assert found["own"]["kl_plan"] < found["asked"]["kl_plan"]
    assert LEFT in quantize_text(found["asked"])


def test_a_run_that_began_without_eight_bits_goes_on_without(
    checkpoint: Checkpoint, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe, ask = str(checkpoint(TIED, blocks=2)), small(text_file, players="linears"), whole(LARGE)
    with monkeypatch.context() as earlier:
        earlier.setattr("apportion.bits.quantize.leaves_room", lambda *_: False)
        earlier.setattr("apportion.bits.quantize.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            quantize(model, tmp_path / "out", ask, recipe)
    result = quantize(model, tmp_path / "out", ask, recipe, resume=True)
    assert [width.split("g")[0] for width in result["widths"]] == ["w2", "w3", "w4"]
    assert result["resumed_evaluations"] > 0


def test_what_is_kept_stays_as_the_files_have_it(checkpoint: Checkpoint, text_file: Path, tmp_path: Path) -> None:
    model = checkpoint(UNTIED)
    source = load_file(model / "model.safetensors")
    names = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}
    for keep in (("embedding",), ("head",), ("embedding", "head")):
        limit = least(open_model(str(model), blocks(text_file)), keep=keep)
        out = tmp_path / "-".join(keep)
        result = quantize(str(model), out, whole(limit, keep=keep), blocks(text_file))
        assert result["vocabulary"]["kept"] == {name: f"--keep {name}" for name in keep}
        assert set(result["vocabulary"]["widths"]) == {"embedding", "head"} - set(keep)
        written = load_file(out / "model.safetensors")
        assert all(torch.equal(written[names[name]], source[names[name]]) for name in keep)
        config = read_json(out / "config.json")["quantization_config"]
        assert unread(config) == []
        assert result["loads_in"] == {"transformers": ""}


def test_a_tied_pair_is_kept_by_either_name(checkpoint: Checkpoint, text_file: Path) -> None:
    quantizer = open_model(str(checkpoint(TIED)), blocks(text_file))
    for name in ("embedding", "head"):
        offers = offers_for(quantizer, whole(LARGE, keep=(name,)))
        assert [by_name(offer.vocabulary) for offer in offers.choices] == [{}]
        assert offers.kept == {"embedding": f"--keep {name}"}


def test_average_bits_speak_of_the_blocks_alone(checkpoint: Checkpoint, text_file: Path) -> None:
    quantizer = open_model(str(checkpoint(UNTIED)), blocks(text_file))
    offers = offers_for(quantizer, QuantizeRequest(avg_bits=3))
    (only,) = offers.choices
    assert not only.vocabulary
    assert only.fixed_bytes == quantizer.costs.fixed_bytes
    assert offers.kept["head"].startswith("--avg-bits")


def test_bits_per_weight_are_those_of_the_whole_file(checkpoint: Checkpoint, text_file: Path, tmp_path: Path) -> None:
    model = str(checkpoint(TIED))
    bits = 8 * least(open_model(model, blocks(text_file))) / open_model(model, blocks(text_file)).parameters
    ask = QuantizeRequest(bits_per_weight=bits + 1e-9, evaluations=16, finalists=1, device="cpu")
    result = quantize(model, tmp_path / "out", ask, blocks(text_file))
    assert result["bits_per_weight"] == pytest.approx(bits, rel=1e-3)
    assert result["bits_per_weight"] <= bits + 1e-9


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"keep": ("embeding", "norms")}, "--keep embeding,norms: unknown"),
        ({"embedding_bits": (3, 8)}, "--embedding-bits 3: not supported"),
        ({"bits_per_weight": 4.0}, "expected exactly one of"),
        ({"max_bytes": None, "bits_per_weight": 0.0}, "expected above 0 and at most 32"),
    ],
)
def test_bad_requests_are_refused_before_the_model_is_read(
    changes: dict[str, Any], problem: str, text_file: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    with pytest.raises((InputError, BudgetError), match=problem):
        quantize(str(checkpoint()), tmp_path / "out", whole(LARGE, **changes), blocks(text_file))
    assert not (tmp_path / "out").exists()


def test_a_plan_is_applied_again_to_the_byte(
    smallest: Callable[[str], tuple[Path, Path, Json]], text_file: Path, tmp_path: Path
) -> None:
    model, out, result = smallest(UNTIED)
    plan: Plan = plan_from(read_json(out / "plan.json"))
    again = apply(str(model), plan, tmp_path / "again", device="cpu")
    assert again["bytes"] == result["bytes"]
    assert again["vocabulary"] == result["vocabulary"]["widths"]
    same = (out / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert same
    with pytest.raises(InputError, match="embedding and head a width, and quanto"):
        apply(str(model), plan, tmp_path / "quanto", rounding="quanto", recipe=blocks(text_file), device="cpu")


def test_gptq_and_tuning_leave_the_embedding_as_it_was_rounded(
    checkpoint: Checkpoint, text_file: Path, tmp_path: Path
) -> None:
    model = str(checkpoint(TIED, blocks=2))
    recipe = small(text_file, players="blocks", rounding="gptq", rounding_windows=4, tune=2, tune_windows=4)
    quantizer = open_model(model, recipe)
    result = quantize(model, tmp_path / "out", whole(least(quantizer)), recipe)
    assert result["vocabulary"]["widths"] == {"embedding": "w8g32"}
    assert result["tuned"]["asked"] == 2
    assert result["loads_in"] == {"transformers": ""}
    (matrix,), _ = vocabulary_of(quantizer.staged)
    codes = rounded(quantizer.staged, {matrix: grid_width(8, 32)})[matrix.path].tensors()["weight"]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"], codes)


def test_a_tied_head_that_the_file_holds_twice_is_replaced_once(
    checkpoint: Checkpoint, text_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "twice"
    shutil.copytree(checkpoint(TIED), model)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    limit = least(open_model(str(model), blocks(text_file)))
    result = quantize(str(model), tmp_path / "out", whole(limit), blocks(text_file))
    written = read_entries(tmp_path / "out" / "model.safetensors")
    assert result["vocabulary"]["widths"] == {"embedding": "w8g32"}
    assert "lm_head.weight" not in written
    assert written["model.embed_tokens.weight"].dtype == torch.int8
    assert result["loads_in"] == {"transformers": ""}


def test_columns_that_no_group_divides_are_kept_and_named(checkpoint: Checkpoint, text_file: Path) -> None:
    quantizer = open_model(str(checkpoint(UNTIED)), blocks(text_file))
    wide = Quantizer(
        quantizer.staged,
        quantizer.tokenizer,
        small(text_file, widths=("w2g32", "w4g32"), group_size=48),
    )
    assert "not divided by groups of 48" in offers_for(wide, whole(LARGE)).kept["embedding"]


def test_costs_are_measured_with_everything_else_at_full_precision(checkpoint: Checkpoint, text_file: Path) -> None:
    quantizer = open_model(str(checkpoint(UNTIED)), blocks(text_file))
    staged, text = quantizer.staged, quantizer.chosen(2)
    full = float(staged.window_nll(text.windows).mean())
    offers = priced(quantizer, offers_for(quantizer, whole(LARGE)).choices, text, full)
    for offer in offers:
        for matrix, width in offer.vocabulary.items():
            with staged.in_place(rounded(staged, {matrix: width})):
                alone = float(staged.window_nll(text.windows).mean()) - full
            assert offer.costs[matrix.name] == pytest.approx(alone, abs=1e-12)
    assert float(staged.window_nll(text.windows).mean()) == full  # everything is back in its place


def test_only_offers_that_may_be_best_are_left(checkpoint: Checkpoint, text_file: Path) -> None:
    quantizer = open_model(str(checkpoint(TIED)), blocks(text_file))
    text = quantizer.chosen(2)
    full = float(quantizer.staged.window_nll(text.windows).mean())
    (matrix,), _ = vocabulary_of(quantizer.staged)
    poor = Offer(Budget(100, ""), 0, {matrix: grid_width(4, 32)})
    rich = Offer(Budget(200, ""), 0, {matrix: grid_width(4, 32)})
    free = Offer(Budget(100, ""), 0)
    left = priced(quantizer, [poor, rich, free], text, full)
    assert poor not in [item for item in left if item.budget.player_bytes == 100 and item.vocabulary]
    assert sorted(item.budget.player_bytes for item in left) == sorted({item.budget.player_bytes for item in left})


@pytest.mark.parametrize(("name", "tied"), [("Gemma-3 wrapper", True), ("OPT", True), ("Qwen3.5", False)])
def test_wrapped_and_other_embeddings_load_in_stock_transformers(name: str, tied: bool, tmp_path: Path) -> None:
    """Under the files' names, whatever the class calls them."""
    staged, tokenizer = load_full(str(make(name, tmp_path / "model")), place("cpu", "float32"))
    found, kept = vocabulary_of(staged)
    assert kept == {}
    assert [bool(matrix.twin) for matrix in found] == ([True] if tied else [False, False])
    vocabulary = {matrix: grid_width(8 if matrix.name == "embedding" else 4, 32) for matrix in found}
    widths = dict.fromkeys(staged.originals, grid_width(4, 32))
    blocks = round_all(staged, rounding_named("nearest"), (grid_width(4, 32),))
    packed = {**{path: item for (path, _), item in blocks.items()}, **rounded(staged, vocabulary)}
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(out, staged, widths, packed, tokenizer, COMPRESSED_TENSORS, vocabulary)
    account_of(out, staged, vocabulary)
    result = reloaded(out, staged, packed, COMPRESSED_TENSORS)
    assert result.loads_in == {"transformers": ""}
    assert result.difference < 1e-5
    with torch.inference_mode(), staged.in_place(packed):
        expected = staged.model(input_ids=IDS).logits
    torch.testing.assert_close(load(out)(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [(), ("embedding",)])
def test_a_factor_that_its_dtype_rounds_is_that_of_the_checkpoint(
    keep: tuple[str, ...], checkpoint: Checkpoint, text_file: Path, tmp_path: Path
) -> None:
    """Gemma multiplies the embedding by the square root of its width: of 96, another number in bfloat16."""
    config = tiny_config("gemma2", 2)
    config.hidden_size = 96
    model = Path(shutil.copytree(checkpoint("gemma2", blocks=2), tmp_path / "model"))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(model)
    limit = least(open_model(str(model), blocks(text_file)), keep=keep)
    result = quantize(str(model), tmp_path / "out", whole(limit, keep=keep), blocks(text_file))
    assert result["loads_in"] == {"transformers": ""}
    assert result["reload_difference"] < 1e-5
    scale = dict(load(tmp_path / "out").named_buffers())["model.embed_tokens.embed_scale"]
    assert float(scale) == float(torch.tensor(96**0.5).bfloat16())


def test_a_wrong_embedding_is_found_before_the_folder_is_called_complete(
    smallest: Callable[[str], tuple[Path, Path, Json]], text_file: Path, tmp_path: Path
) -> None:
    model, out, _ = smallest(TIED)
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    (broken / "manifest.json").unlink()
    tensors = load_file(broken / "model.safetensors")
    tensors["model.embed_tokens.weight_scale"] *= 1.5
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    quantizer = open_model(str(model), blocks(text_file))
    plan = plan_from(json.loads((out / "plan.json").read_text()))
    (matrix,), _ = vocabulary_of(quantizer.staged)
    packed = {**quantizer.written(plan.assignment).packed, **rounded(quantizer.staged, {matrix: grid_width(8, 32)})}
    with pytest.raises(ArtifactCorruptError, match="predicts otherwise"):
        reloaded(broken, quantizer.staged, packed, COMPRESSED_TENSORS)
