"""Texts as commands take them: several files with shares, conversations, and what every window begins with."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from apportion.bits.apply import apply
from apportion.bits.divergence.run import Measurement
from apportion.bits.divergence.run import compare as diverge
from apportion.bits.finalists import judges_for
from apportion.bits.gguf.recipe import FileRequest
from apportion.bits.gguf.workshop import text_of
from apportion.bits.perplexity import perplexity
from apportion.bits.plan import allocate, budget_from_bits, estimate
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.quantizer import take_samples
from apportion.cli.options import parse_share, read_texts
from apportion.core.artifact import read_json
from apportion.core.errors import ArtifactMismatchError, InputError
from apportion.models.mixture import Share
from apportion.models.text import load_calibration
from tests.integration.test_bits_commands import run_main
from tests.recipes import small
from tests.tiny_models import make_checkpoint

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
BOS = 0


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer has a chat template."""
    folder = make_checkpoint(tmp_path_factory.mktemp("chatting"), "llama", blocks=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    turns = [{"role": "user", "content": "how many nets?"}, {"role": "assistant", "content": "a miller counts 3"}]
    lines = [[*turns, {"role": "user", "content": f"and {number}?"}] for number in range(60)]
    path.write_text("\n".join(json.dumps({"messages": line}) for line in lines))
    return path


def test_two_files_with_shares_and_a_convention_from_the_command_to_the_result(
    chatting: Path, chats: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = "--windows 6 --window-tokens 24 --permutations 1 --group-size 32 --bos always --device cpu --json"
    texts = ("--calibration", f"{text_file}=2", "--calibration", f"{chats}=1")
    assert run_main(monkeypatch, "samples", chatting, "--out", tmp_path / "s", *texts, *words.split()) == 0
    assert json.loads(capsys.readouterr().out)["bos"] is True
    kept = load_calibration(tmp_path / "s" / "windows.safetensors")
    assert (kept.source, kept.bos) == ("4 of text.txt, 2 of chats.jsonl", True)
    assert (kept.windows[:, 0] == BOS).all()
    tokenizer = AutoTokenizer.from_pretrained(chatting)
    assert ["user" in tokenizer.decode(row) for row in kept.windows] == [False] * 4 + [True] * 2


def test_a_run_draws_all_its_texts_by_the_shares_and_says_what_windows_begin_with(
    chatting: Path, chats: Path, text_file: Path, tmp_path: Path
) -> None:
    shares = (Share(text_file, 2), Share(chats, 1))
    recipe = small(shares, bos=True, rounding="gptq", windows=3, rounding_windows=6, tune=2, tune_windows=9)
    ask = QuantizeRequest(avg_bits=3.0, evaluations=20, finalists=1, device="cpu")
    result = quantize(str(chatting), tmp_path / "q", ask, recipe)
    assert (result["calibration"], result["bos"]) == ("2 of text.txt, 1 of chats.jsonl", True)
    assert "each after a beginning-of-text token" in (tmp_path / "q" / "report" / "report.md").read_text()
    assert read_json(tmp_path / "q" / "run.json")["text"][1]
    quantizer = open_model(str(chatting), recipe.for_method("auto"), ask)
    drawn = {"rounding": quantizer.rounding_text, "tuning": quantizer.tuning_text}
    drawn["judges"] = judges_for(quantizer, quantizer.chosen(3)).windows.windows
    pools = [set(map(tuple, pool.tolist())) for pool in quantizer.mixture.pools]
    counts = {
        name: [sum(tuple(row) in pool for row in rows.tolist()) for pool in pools] for name, rows in drawn.items()
    }
    assert counts == {"rounding": [4, 2], "tuning": [6, 3], "judges": [8, 4]}
    assert all((rows[:, 0] == BOS).all() for rows in drawn.values())
    assert quantize(str(chatting), tmp_path / "q", ask, recipe, resume=True) == result
    other = small(shares, bos=False, rounding="gptq", windows=3, rounding_windows=6, tune=2)
    with pytest.raises(ArtifactMismatchError, match="another bos"):
        quantize(str(chatting), tmp_path / "q", ask, other, resume=True)


def test_apply_says_what_its_text_begins_with(checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path) -> None:
    model, recipe = str(checkpoint(blocks=2)), small(text_file, windows=2, permutations=2)
    sensitivity = estimate(take_samples(open_model(model, recipe), tmp_path / "s"))
    plan = allocate(sensitivity, budget_from_bits(sensitivity.costs, 3))
    marked = small(text_file, bos=True, rounding_windows=4)
    assert apply(model, plan, tmp_path / "gptq", rounding="gptq", recipe=marked, device="cpu")["bos"] is True
    assert apply(model, plan, tmp_path / "nearest", recipe=marked, device="cpu")["bos"] is None  # reads no text
    again = small(text_file, bos=False, rounding_windows=4)
    with pytest.raises(ArtifactMismatchError, match="another text"):
        apply(model, plan, tmp_path / "gptq", rounding="gptq", recipe=again, device="cpu", resume=True)


def test_perplexity_offers_both_conventions(
    checkpoint: Callable[..., Path],
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("perplexity", checkpoint(blocks=2), "--text", text_file, "--window-tokens", 24, "--windows", 3)
    found: dict[str, Any] = {}
    for convention in ("auto", "always", "never"):
        assert run_main(monkeypatch, *words, "--bos", convention, "--device", "cpu", "--json") == 0
        found[convention] = json.loads(capsys.readouterr().out)
    assert {name: value["bos"] for name, value in found.items()} == {"auto": False, "always": True, "never": False}
    assert found["auto"]["nll"] == found["never"]["nll"] != found["always"]["nll"]
    assert run_main(monkeypatch, *words, "--bos", "always", "--device", "cpu") == 0
    assert "in 3 windows, each after a beginning-of-text token" in capsys.readouterr().out


def test_divergence_reads_text_and_conversations_alike(chatting: Path, chats: Path, text_file: Path) -> None:
    ask = {"text": text_file, "chat": chats, "window_tokens": 24, "windows": 3, "device": "cpu"}
    own = str(chatting)
    found = {bos: diverge(own, [own], Measurement(**ask, bos=bos))["texts"] for bos in (None, True)}  # type: ignore[arg-type]
    assert [found[None][name]["bos"] for name in ("text", "chat")] == [False, False]
    assert [found[True][name]["bos"] for name in ("text", "chat")] == [True, True]
    same = perplexity(own, chats, window_tokens=24, windows=3, bos=True, device="cpu")
    assert math.isclose(found[True]["chat"]["reference_perplexity"], same.perplexity, rel_tol=1e-5)


def test_a_model_that_samples_its_own_text_leaves_its_beginning_out_where_asked(chatting: Path) -> None:
    for bos, begun in ((None, True), (True, True), (False, False)):
        quantizer = open_model(str(chatting), small(None, bos=bos), QuantizeRequest(device="cpu"))
        found = quantizer.chosen(4)
        assert found.windows.shape == (4, 24)
        assert found.bos is begun is quantizer.bos
        assert bool((found.windows[:, 0] == BOS).all()) is begun


def test_text_that_a_model_sampled_is_not_gone_on_with_under_another_convention(chatting: Path, tmp_path: Path) -> None:
    place = QuantizeRequest(device="cpu")
    take_samples(open_model(str(chatting), small(None, bos=False, permutations=1), place), tmp_path / "s")
    for bos in (None, True):
        again = open_model(str(chatting), small(None, bos=bos, permutations=1), place)
        with pytest.raises(ArtifactMismatchError, match="bos"):
            take_samples(again, tmp_path / "s", resume=True)


def test_a_file_for_llama_cpp_is_searched_on_every_files_share(chatting: Path, chats: Path, text_file: Path) -> None:
    quantizer = open_model(str(chatting), small(text_file), QuantizeRequest(device="cpu"))
    request = FileRequest(
        max_bytes=1, calibration=(Share(text_file, 3), Share(chats)), bos=True, windows=8, window_tokens=24,
        judged_windows=4, importance_windows=8,
    )  # fmt: skip
    text = text_of(quantizer.staged, quantizer.tokenizer, request)
    spoken = {
        name: sum("user" in quantizer.tokenizer.decode(row) for row in rows)
        for name, rows in {
            "measured": text.measured.windows,
            "finals": text.finals.windows,
            "judged": text.judged,
        }.items()
    }
    assert spoken == {"measured": 2, "finals": 4, "judged": 1}
    assert text.measured.bos is True
    assert (text.judged[:, 0] == BOS).all()


def test_the_command_for_a_file_passes_texts_and_convention_on(
    text_file: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[FileRequest] = []

    def take(model: str, out: Path, request: FileRequest, *, resume: bool) -> None:
        got.append(request)
        raise InputError("enough")

    monkeypatch.setattr("apportion.bits.gguf.quantize.quantize_gguf", take)
    words = ("quantize", "m", "--format", "gguf", "--max-bytes", "1GB", "--out", tmp_path / "m.gguf", "--device", "cpu")
    texts = ("--calibration", text_file, "--calibration", f"{chats}=0.5", "--bos", "never")
    assert run_main(monkeypatch, *words, *texts) != 0
    assert got[0].calibration == (Share(text_file), Share(chats, 0.5))
    assert got[0].bos is False


def test_what_is_wrong_with_texts_is_refused_before_any_weights_are_rounded(
    checkpoint: Callable[..., Path], chats: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = checkpoint(blocks=2)
    words = ("quantize", model, "--avg-bits", 3, "--out", tmp_path / "q", "--window-tokens", 24, "--windows", 1)
    texts = ("--calibration", f"{text_file}=0", "--calibration", "none.txt=2")
    assert run_main(monkeypatch, *words, *texts) != 0
    said = capsys.readouterr().err
    for part in ("text.txt=0: expected a share above 0", "none.txt: no such file", "--windows 1: expected at least 2"):
        assert part in said
    assert run_main(monkeypatch, *words, "--calibration", f"{text_file}=two", "--bos", "sometimes") != 0
    said = capsys.readouterr().err
    assert "--bos sometimes: unknown" in said
    assert "expected a number after the last =" in said
    monkeypatch.setattr("apportion.bits.quantize.offers_for", lambda *_: pytest.fail("worked on"))
    assert run_main(monkeypatch, *words, "--calibration", chats) != 0
    assert "holds conversations, and the model's tokenizer has no chat template" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


def test_a_model_without_the_token_cannot_be_asked_for_it(tmp_path: Path, text_file: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama", blocks=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="--bos always: the tokenizer has no beginning-of-text token"):
        perplexity(str(folder), text_file, window_tokens=24, windows=1, bos=True, device="cpu")
    for text in (text_file, None):
        recipe = small(text, bos=True)
        with pytest.raises(InputError, match="--bos always"):
            open_model(str(folder), recipe, QuantizeRequest(device="cpu")).require_text()


def test_a_files_own_sign_is_not_taken_for_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k=2").write_text("text")
    assert parse_share("k=2") == Share(Path("k=2"))
    assert parse_share("k=2=0.5") == Share(Path("k=2"), 0.5)
    assert read_texts(["a.txt=3"], "never") == {"calibration": Path("a.txt"), "bos": False}
    assert read_texts(None, "auto") == {"calibration": None, "bos": None}
    several = (Share(Path("a.txt"), 2.0), Share(Path("b.txt")))
    assert read_texts(["a.txt=2", "b.txt"], "auto")["calibration"] == several


def test_a_text_that_is_refused_leaves_no_folder(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_text('{"text": "one"}\n{"text": "tw')
    quantizer = open_model(str(checkpoint("llama")), small(tmp_path / "cut.jsonl", permutations=1))
    with pytest.raises(InputError, match="line 2: is no JSON"):
        take_samples(quantizer, tmp_path / "s")
    assert not (tmp_path / "s").exists()
