"""Checkpoints of which a file is broken: what is said names that file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apportion.bits.perplexity import perplexity
from apportion.core.artifact import read_json
from apportion.core.device import place
from apportion.core.errors import ApportionError, ArtifactCorruptError, InputError
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer


def test_what_is_damaged_is_named_and_not_its_tokenizer(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    whole = checkpoint("llama")

    def damaged(name: str, content: str) -> str:
        folder = Path(shutil.copytree(whole, tmp_path / f"{name}-{len(content)}"))
        (folder / name).write_text(content)
        return str(folder)

    config = read_json(whole / "config.json")
    odd = json.dumps({**config, "hidden_size": config["hidden_size"] + 1})
    for model, named, remedy in (
        (damaged("config.json", '{"a":'), "config.json: cannot be read as JSON", ""),
        (damaged("config.json", odd), "not a multiple", "mend its config.json"),
        (damaged("tokenizer.json", '{"a"'), "its tokenizer cannot be read", "bring tokenizer.json again"),
    ):
        with pytest.raises(ApportionError, match=named) as refused:
            load_tokenizer(model)
        assert remedy in (refused.value.remedy or "")
    with pytest.raises(InputError, match="not a multiple"):
        load_staged(damaged("config.json", odd + " "), place("cpu", "float32"))
    bare = Path(shutil.copytree(whole, tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "special*")))
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(str(bare))
    shutil.copy(whole / "tokenizer_config.json", bare)
    with pytest.raises(InputError, match="its tokenizer cannot be read") as refused:
        load_tokenizer(str(bare))
    assert refused.value.remedy == "tokenizer.json (or tokenizer.model) is missing: add it"
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + bytes(8) + bytes([9]) + bytes(10))
    with pytest.raises(ArtifactCorruptError, match="cannot be read as GGUF"):
        load_tokenizer(str(tmp_path / "cut.gguf"))


@pytest.mark.parametrize("said", ["fp8", ["fp8"], 8])
def test_a_quantization_config_that_is_no_object_is_refused(
    said: object, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "said"))
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(InputError, match="expected an object that says how weights are decoded"):
        load_staged(str(folder), place("cpu", "float32"))


def test_layers_beyond_those_that_are_counted_are_told(
    checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "fewer"))
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] - 1}))
    whole, fewer = (
        perplexity(str(one), text_file, window_tokens=24, windows=1) for one in (checkpoint("llama"), folder)
    )
    assert whole.unread == ()
    assert fewer.unread
    assert all(f"layers.{config['num_hidden_layers'] - 1}." in name for name in fewer.unread)
