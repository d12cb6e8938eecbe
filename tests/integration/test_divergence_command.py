"""`apportion divergence` as users call it: a folder and a quantized one, a text and conversations."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

import apportion.cli.bits
import apportion.cli.divergence  # noqa: F401  both add commands: an app of one command takes no name
from apportion.bits.divergence.run import Measurement, compare
from apportion.cli.base import app
from apportion.core.artifact import read_json
from apportion.core.errors import ArtifactExistsError, InputError
from tests.tiny_models import make_checkpoint

CHAT = "{% for m in messages %}<bos>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with a chat template, and one of other weights."""
    folders = tuple(make_checkpoint(tmp_path_factory.mktemp("m"), "llama", seed=seed) for seed in (0, 1))
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(folder)
    return folders[0], folders[1]


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    turns = [{"role": "user", "content": "the smith mends 3 nets"}, {"role": "assistant", "content": "a miller counts"}]
    path.write_text("\n".join([json.dumps({"messages": turns})] * 20))
    return path


def test_table_json_and_plots(models: tuple[Path, Path], text_file: Path, chat_file: Path, tmp_path: Path) -> None:
    own, other = map(str, models)
    arguments = ["divergence", own, own, other, "--text", str(text_file), "--chat", str(chat_file), "--window-tokens"]
    shown = CliRunner().invoke(
        app, [*arguments, "32", "--windows", "5", "--device", "cpu", "--out", str(tmp_path / "d")]
    )
    assert shown.exit_code == 0, shown.output
    saved = read_json(tmp_path / "d" / "divergence.json")
    for text in ("text", "chat"):
        same, different = (candidate["texts"][text] for candidate in saved["candidates"])
        assert saved["texts"][text]["tokens"] == 5 * 31
        assert abs(same["kl_mean"]["mean"]) < 1e-6
        assert different["kl_mean"]["low"] > 0.05
        assert (tmp_path / "d" / f"divergence-{text}.png").read_bytes().startswith(b"\x89PNG")
    assert saved["candidates"][0]["bytes"] == (models[0] / "model.safetensors").stat().st_size
    assert "| mean KL |" in shown.output
    assert "| mean KL |" in (tmp_path / "d" / "divergence.md").read_text()


def test_everything_wrong_is_said_before_any_model_is_read(tmp_path: Path, text_file: Path) -> None:
    ask = Measurement(text=text_file, chat=tmp_path / "none.jsonl", window_tokens=1)
    with pytest.raises(InputError, match=r"^3 values") as raised:
        compare(str(tmp_path / "no-model"), [], ask)
    assert all(part in str(raised.value) for part in ("none.jsonl", "--window-tokens 1", "no-model"))


def test_an_out_that_cannot_be_written_is_refused_before_any_model_is_read(
    models: tuple[Path, Path], text_file: Path, tmp_path: Path
) -> None:
    held = {path.name for path in models[1].iterdir()}
    ask = Measurement(text=text_file, window_tokens=16, windows=2, device="cpu")
    with pytest.raises(ArtifactExistsError, match="is a file, expected a folder"):
        compare(str(models[0]), [str(models[1])], ask, text_file)
    for own in (models[1], models[1] / "inside"):
        with pytest.raises(ArtifactExistsError, match="which is only read"):
            compare(str(models[0]), [str(models[1])], ask, own)
    assert {path.name for path in models[1].iterdir()} == held


def test_another_numbering_of_tokens_is_refused(
    models: tuple[Path, Path], checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other", "llama")
    saved = json.loads((other / "tokenizer.json").read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match=r"token 'a' is number|token 'e' is number"):
        compare(str(models[0]), [str(other)], Measurement(text=text_file, window_tokens=16, windows=2, device="cpu"))
