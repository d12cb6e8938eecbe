"""`apportion quantize --format gguf`: exact bytes, real llama.cpp, refusals, and a run that was cut off."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import apportion.cli.bits
import apportion.cli.divergence  # noqa: F401  both add commands
from apportion.bits.divergence import divergence_of, reference_of, summarize
from apportion.bits.gguf.fisher import fisher_costs
from apportion.bits.gguf.game import FileGame
from apportion.bits.gguf.importance import input_squares, load_imatrix
from apportion.bits.gguf.ladders import Ladders, require_budget
from apportion.bits.gguf.plan import find_plan, write_file
from apportion.bits.gguf.quantize import quantize_gguf
from apportion.bits.gguf.recipe import FileRequest
from apportion.bits.gguf.workshop import Workshop, open_workshop, text_of
from apportion.cli.base import app
from apportion.core.artifact import read_json, read_manifest, sha256_bytes, sha256_file, write_json
from apportion.core.device import place
from apportion.core.errors import ArtifactError, ArtifactExistsError, ArtifactMismatchError, BudgetError, InputError
from apportion.formats.gguf_file import Field, file_bytes
from apportion.models.gguf.load import load_gguf
from apportion.models.gguf.source import GgufFile
from apportion.models.load import load_full
from apportion.models.staged import StagedModel
from apportion.models.text import windows_of
from tests.llama_cpp import LlamaCpp
from tests.tiny_gguf_models import make_kind
from tests.tiny_models import make_text

CPU = place("cpu", "float32")
SMALL = {
    "windows": 3, "window_tokens": 32, "importance_windows": 6, "sequences": 12, "sequence_tokens": 32,
    "evaluations": 24, "judged_windows": 3, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(2500))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function kind -> a tiny checkpoint with matrices of 256 columns and of 64."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_kind(tmp_path_factory.mktemp(kind) / kind, kind, intermediate_size=256)
        return made[kind]

    return make


@pytest.fixture(scope="module")
def shop(models: Callable[[str], Path], text: Path) -> Workshop:
    return open_workshop(str(models("llama")), FileRequest(max_bytes=10**9, calibration=text, **SMALL))


def test_any_budget_is_met_to_the_byte_and_never_exceeded(shop: Workshop, tmp_path: Path) -> None:
    costs = shop.ladders.costs
    for share in np.linspace(0, 1, 9):
        budget = int(costs.smallest() + share * (costs.largest() - costs.smallest()))
        plan, _ = find_plan(shop, budget)
        path = tmp_path / "plan.gguf"
        size = write_file(shop, plan, path)
        assert size == plan.total_bytes == path.stat().st_size <= budget
        assert budget - size < 5000, "more room is left than any step takes"
        path.unlink()


def test_bytes_of_any_assignment_are_the_files(shop: Workshop) -> None:
    rng = np.random.default_rng(0)
    ladders: Ladders = shop.ladders
    for _ in range(50):
        plan = tuple(rng.integers(0, len(ladders.costs.widths), len(ladders.names)).tolist())
        counted = ladders.costs.spent(plan) + ladders.costs.fixed_bytes
        assert counted == file_bytes(shop.fields, ladders.entries(shop.source.shapes, plan))


def test_values_are_the_same_where_memory_runs_out_on_the_way(models: Callable[[str], Path], text: Path) -> None:
    shop = open_workshop(str(models("llama")), FileRequest(max_bytes=10**9, calibration=text, **SMALL))
    count = len(shop.ladders.names)
    plans = [(0,) * count, (1,) * count, (0,) * (count // 2) + (1,) * (count - count // 2)]
    expected = FileGame(shop.bank, shop.text.measured).values(plans)
    game, called = FileGame(shop.bank, shop.text.measured), []

    def watch(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        called.append(given[0].shape)
        if len(called) == 2:  # of the second plan, the first being known by then
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = shop.staged.blocks[1].register_forward_pre_hook(watch)
    found = game.values(plans)
    handle.remove()
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert game.evaluations == len(plans)
    assert game.kept_bytes == 0
    assert shop.staged.given_up == ["32 tokens at once"]


def test_a_text_too_short_for_finalists_of_its_own_is_told(shop: Workshop) -> None:
    needed = SMALL["judged_windows"] + 3 * SMALL["windows"]
    words = shop.request.calibration.read_text().split()
    length = len(words) * needed // len(windows_of(shop.request.calibration, shop.tokenizer, SMALL["window_tokens"]))
    for share, apart in ((1.2, True), (0.8, False)):
        short = shop.request.calibration.with_name(f"short-{apart}.txt")
        short.write_text(" ".join(words[: int(share * length)]))
        text = text_of(shop.staged, shop.tokenizer, replace(shop.request, calibration=short))
        seen, finals = ({tuple(row) for row in part.windows.tolist()} for part in (text.measured, text.finals))
        assert text.apart is apart
        assert seen.isdisjoint(finals) is apart
        assert {tuple(row) for row in text.judged.tolist()}.isdisjoint(seen | finals)


def test_importance_is_the_mean_square_of_what_every_matrix_is_given(models: Callable[[str], Path], text: Path) -> None:
    shop = open_workshop(str(models("gemma3")), FileRequest(max_bytes=1, calibration=text, **SMALL))
    windows, seen = shop.text.importance, {}
    paths = {path: name for name, path in shop.weighed.items()}

    def watch(path: str) -> Callable[..., None]:
        return lambda _, args: seen.__setitem__(path, args[0].flatten(0, -2).pow(2).mean(0))

    for path in paths:
        shop.staged.model.get_submodule(path).register_forward_pre_hook(watch(path))
    found = input_squares(shop.staged, windows)
    with torch.inference_mode():
        shop.staged.model(input_ids=windows)
    for path, expected in seen.items():
        torch.testing.assert_close(found[path], expected, rtol=1e-4, atol=1e-6)
    assert set(seen) == set(paths)


def test_costs_alone_are_the_measured_ones(shop: Workshop) -> None:
    game, costs = shop.game(), shop.ladders.costs
    top = costs.uniform(-1)
    alone = [(*top[:p], 0, *top[p + 1 :]) for p in range(len(top))]
    values = game.values([top, *alone]).mean(axis=1)
    measured, predicted = values[1:] - values[0], shop.fisher.costs[:, 0] - shop.fisher.costs[:, -1]
    assert np.corrcoef(np.log(measured), np.log(predicted))[0, 1] > 0.9
    assert 0.5 < predicted.sum() / measured.sum() < 2


def test_costs_are_per_token_of_the_sequences_that_were_run(shop: Workshop) -> None:
    windows = shop.text.costs[:2, :16]
    longer, exact = (fisher_costs(shop.bank, windows, sequences=2, tokens=tokens, seed=3) for tokens in (64, 16))
    assert longer.tokens == 16
    assert np.array_equal(longer.costs, exact.costs)


def test_the_game_equals_whole_forward_passes(shop: Workshop) -> None:
    rng = np.random.default_rng(1)
    rungs = len(shop.ladders.costs.widths)
    plans = [tuple(rng.integers(0, rungs, len(shop.ladders.names)).tolist()) for _ in range(6)]
    game, windows = shop.game(), shop.text.measured.windows
    own = shop.staged.model(input_ids=windows).logits[:, :-1].log_softmax(-1)
    for plan, value in zip(plans, game.values(plans), strict=True):
        with shop.bank.in_place(plan) as staged, torch.inference_mode():
            theirs = staged.model(input_ids=windows).logits[:, :-1].log_softmax(-1)
        kl = (own.exp() * (own - theirs)).sum(-1).mean(1)
        np.testing.assert_allclose(value, kl.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_the_file_in_real_llama_cpp_is_what_was_measured(
    kind: str, models: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.gguf"
    result = quantize_gguf(str(models(kind)), out, FileRequest(bits_per_weight=9, calibration=text, **SMALL))
    assert result["bytes"] == out.stat().st_size <= result["max_bytes"]
    assert result["finalists"][0]["source"] == result["source"]
    assert result["finalists"][0]["judged"] == min(one["judged"] for one in result["finalists"])
    assert 0 < result["costs_error"] < 1
    manifest = read_manifest(tmp_path / "model.gguf.apportion")
    assert manifest["kind"] == "gguf file"
    written = GgufFile(out)
    plan = read_json(tmp_path / "model.gguf.apportion" / "plan.json")
    assert written.types == plan["types"]
    assert written.plain["apportion.plan_digest"] == result["plan_digest"]
    reference, candidate = open_workshop(str(models(kind)), FileRequest(max_bytes=1, **SMALL)), load_gguf(out, CPU)
    windows = torch.randint(4, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    found = summarize(divergence_of(reference_of(reference.staged, windows), candidate))
    runner = LlamaCpp(out, 32)
    theirs = torch.stack([torch.from_numpy(runner.logits(row.tolist())) for row in windows]).log_softmax(-1)
    runner.close()
    with torch.inference_mode():
        own = reference.staged.model(input_ids=windows).logits.log_softmax(-1)
    kl = float((own.exp() * (own - theirs)).sum(-1)[:, :-1].mean())
    # llama.cpp also rounds activations to 8 bit, which a model this small feels
    assert kl == pytest.approx(found.kl_mean.mean, rel=0.5, abs=2e-3)


def test_a_gguf_file_is_a_source_too(shop: Workshop, text: Path, tmp_path: Path) -> None:
    plan, _ = find_plan(shop, shop.ladders.costs.largest())
    write_file(shop, plan, tmp_path / "q8.gguf")
    assert set(plan.types.values()) == {"Q8_0", "F32"}
    request = FileRequest(bits_per_weight=8, calibration=text, **SMALL)
    result = quantize_gguf(str(tmp_path / "q8.gguf"), tmp_path / "small.gguf", request)
    first, second = GgufFile(tmp_path / "q8.gguf"), GgufFile(tmp_path / "small.gguf")
    assert second.plain["tokenizer.ggml.tokens"] == first.plain["tokenizer.ggml.tokens"]
    assert result["divergence"]["kl_mean"]["mean"] < 0.2


def test_a_run_that_was_cut_off_goes_on(models: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    request = FileRequest(bits_per_weight=9, calibration=text, **SMALL)
    out, folder = tmp_path / "model.gguf", tmp_path / "model.gguf.apportion"
    whole = quantize_gguf(str(models("llama")), out, request)
    out.unlink()
    for name in ("manifest.json", "result.json", "plan.json"):
        (folder / name).unlink()
    with pytest.raises(ArtifactExistsError):
        quantize_gguf(str(models("llama")), out, request)
    again = quantize_gguf(str(models("llama")), out, request, resume=True)
    assert again["plan_digest"] == whole["plan_digest"]
    assert out.stat().st_size == whole["bytes"]


def test_a_finished_file_that_is_gone_or_another_is_written_again(
    models: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = FileRequest(bits_per_weight=9, calibration=text, **{**SMALL, "evaluations": 6})
    out, folder = tmp_path / "model.gguf", tmp_path / "model.gguf.apportion"

    def again(ask: FileRequest = request, file: Path = out) -> object:
        return quantize_gguf(str(models("llama")), file, ask, resume=True)

    first = quantize_gguf(str(models("llama")), out, request)
    whole, manifest = out.read_bytes(), read_manifest(folder)
    assert manifest["file"] == {"name": out.name, "bytes": len(whole), "sha256": sha256_bytes(whole)}
    reused, small = replace(request, bits_per_weight=8, reuse=folder), tmp_path / "small.gguf"
    quantize_gguf(str(models("llama")), small, reused)
    of_small = small.read_bytes()
    monkeypatch.setattr("apportion.bits.gguf.quantize.quantize_into", None)  # nothing is measured again
    for other in (None, b"another", bytes(len(whole))):
        out.unlink() if other is None else out.write_bytes(other)
        assert again() == first
        assert out.read_bytes() == whole
    small.unlink()
    again(reused, small)
    assert small.read_bytes() == of_small
    assert read_manifest(folder) == manifest
    (folder / "importance.imatrix").write_bytes(b"cut")
    assert again() == first  # nothing of it is needed
    out.unlink()
    with pytest.raises(ArtifactError, match=r"model\.gguf: is gone .*importance.imatrix[\s\S]*another --out"):
        again()


def test_a_manifest_that_says_nothing_of_the_file_needs_its_bytes(
    models: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    request = FileRequest(bits_per_weight=9, calibration=text, **{**SMALL, "evaluations": 2})
    out, folder = tmp_path / "model.gguf", tmp_path / "model.gguf.apportion"
    quantize_gguf(str(models("llama")), out, request)
    whole, old = out.read_bytes(), read_json(folder / "manifest.json")
    del old["file"]
    write_json(folder / "manifest.json", old)
    quantize_gguf(str(models("llama")), out, request, resume=True)
    assert read_json(folder / "manifest.json") == old
    out.write_bytes(b"another")
    quantize_gguf(str(models("llama")), out, request, resume=True)
    assert out.read_bytes() == whole
    plan = read_json(folder / "plan.json")
    plan["total_bytes"] -= 1
    write_json(folder / "plan.json", plan)
    old["files"]["plan.json"] = sha256_file(folder / "plan.json")
    write_json(folder / "manifest.json", old)
    out.unlink()
    with pytest.raises(ArtifactMismatchError, match=r"would write another[\s\S]*--reuse .*model\.gguf\.apportion"):
        quantize_gguf(str(models("llama")), out, request, resume=True)


def test_another_budget_needs_no_measuring(models: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    first = FileRequest(bits_per_weight=9, calibration=text, **SMALL)
    quantize_gguf(str(models("qwen3")), tmp_path / "large.gguf", first)
    evidence = tmp_path / "large.gguf.apportion"
    second = replace(first, bits_per_weight=8, reuse=evidence)
    result = quantize_gguf(str(models("qwen3")), tmp_path / "small.gguf", second)
    assert result["evaluations"] == 0
    assert result["bytes"] == (tmp_path / "small.gguf").stat().st_size <= result["max_bytes"]
    measured = quantize_gguf(str(models("qwen3")), tmp_path / "own.gguf", replace(second, reuse=None))
    assert result["divergence"]["kl_mean"]["mean"] < 1.5 * measured["divergence"]["kl_mean"]["mean"]
    assert set(load_imatrix(evidence / "importance.imatrix")) == set(GgufFile(tmp_path / "own.gguf").types) - {
        name for name, kind in GgufFile(tmp_path / "own.gguf").types.items() if kind == "F32"
    }
    with pytest.raises(ArtifactMismatchError, match="another model"):
        quantize_gguf(str(models("llama")), tmp_path / "other.gguf", second)


def test_types_that_need_an_importance_stay_off_an_untied_embedding(text: Path, tmp_path: Path) -> None:
    model = make_kind(tmp_path / "wide", "qwen2", hidden_size=256, head_dim=64)
    types = ("IQ2_XS", "IQ3_S", "Q4_K")
    shop = open_workshop(str(model), FileRequest(max_bytes=1, types=types, calibration=text, **SMALL))
    own = dict(zip(shop.ladders.names, shop.ladders.types, strict=True))
    assert own["token_embd.weight"] == ("Q2_K", "IQ3_S", "Q4_K")
    assert shop.ladders.fallbacks["token_embd.weight"] == {"IQ2_XS": "Q2_K"}
    assert own["output.weight"] == own["blk.0.attn_q.weight"] == types
    assert set(shop.ladders.names) - set(shop.importance) == {"token_embd.weight"}


def test_a_disk_that_refuses_leaves_no_file(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = find_plan(shop, shop.ladders.costs.smallest())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("apportion.formats.gguf_file.put", full)
    with pytest.raises(ArtifactError, match="No space left"):
        write_file(shop, plan, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_file_that_could_not_be_read_again_is_not_kept(shop: Workshop, tmp_path: Path) -> None:
    plan, _ = find_plan(shop, shop.ladders.costs.smallest())
    odd = replace(shop)
    odd.__dict__ |= {"bank": shop.bank, "ladders": shop.ladders, "fields": dict(shop.fields)}
    odd.fields["general.alignment"] = Field("UINT32", 64)
    with pytest.raises(ArtifactError, match="cannot be read again"):
        write_file(odd, plan, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_refusals_come_before_the_work(models: Callable[[str], Path], shop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"bytes short of the smallest file .*token_embd.weight .*\(IQ4_NL\)"):
        require_budget(shop.ladders, 1000)
    with pytest.raises(InputError, match="2 values"):
        FileRequest(types=("Q4_K", "Q9"), evaluations=0, max_bytes=1).check()
    with pytest.raises(InputError, match="exactly one of --max-bytes and --bits-per-weight"):
        FileRequest().check()
    with pytest.raises(InputError, match=r"ends in \.gguf"):
        quantize_gguf(str(models("llama")), tmp_path / "folder", FileRequest(max_bytes=1))
    (tmp_path / "there.gguf").write_bytes(b"mine")
    with pytest.raises(ArtifactExistsError, match="exists"):
        quantize_gguf(str(models("llama")), tmp_path / "there.gguf", FileRequest(max_bytes=1))
    assert not list(tmp_path.glob("*.apportion"))


def unbegun(staged: StagedModel, tokenizer: Any) -> tuple[StagedModel, Any]:
    """A model whose tokenizer has nothing to begin a text with."""
    tokenizer.bos_token = tokenizer.eos_token = None
    return staged, tokenizer


def test_a_text_that_cannot_be_used_claims_no_folder(
    models: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.txt").write_text(make_text(5))
    request = FileRequest(bits_per_weight=9, calibration=tmp_path / "short.txt", **{**SMALL, "evaluations": 2})
    out = tmp_path / "model.gguf"
    with pytest.raises(InputError, match="windows of 32 tokens, expected at least 6"):
        quantize_gguf(str(models("llama")), out, request)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
    monkeypatch.setattr(
        "apportion.bits.gguf.workshop.load_full", lambda *given, **more: unbegun(*load_full(*given, **more))
    )
    with pytest.raises(InputError, match="no beginning-of-text to sample from"):
        quantize_gguf(str(models("llama")), out, replace(request, calibration=None))
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
    quantize_gguf(str(models("llama")), out, replace(request, calibration=text))  # the same name, no --resume


def test_the_command(models: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    given = ["--calibration", str(text), "--window-tokens", "32", "--plan-tokens", "96", "--plans", "10"]
    command = [
        "quantize",
        str(models("qwen3")),
        "--format",
        "gguf",
        "--bits-per-weight",
        "9",
        "--out",
        str(out),
        *given,
    ]
    shown = CliRunner().invoke(app, [*command, "--sequences", "8", "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    assert "mean KL from the original" in shown.output
    for step in ("loading", "importance", "encoding", "costs alone", "search", "writing", "judging"):
        assert re.search(rf"\b{step} \d+ \(\d+%\)", shown.output), step
    compared = ["divergence", str(models("qwen3")), str(out), "--text", str(text), "--window-tokens", "32"]
    table = CliRunner().invoke(app, [*compared, "--windows", "4", "--device", "cpu"])
    assert table.exit_code == 0, table.output
    assert f"| model.gguf | {out.stat().st_size:,} |" in table.output
