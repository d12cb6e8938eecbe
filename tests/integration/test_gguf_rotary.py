"""Rotary scaling and Gemma's attention scale: read from GGUF files as llama.cpp reads them, and refused by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.core.device import place
from apportion.core.errors import InputError
from apportion.formats.gguf_file import Field
from apportion.models.gguf.load import load_gguf
from apportion.models.gguf.source import FolderSource, folder_source
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from tests.integration.test_gguf_models import plain_file
from tests.llama_cpp import LlamaCpp
from tests.tiny_gguf_models import make_kind

CPU = place("cpu", "float32")
IDS = torch.randint(4, 300, (1, 96), generator=torch.Generator().manual_seed(0))
Made = Callable[..., FolderSource]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A function kind, settings -> a tiny checkpoint as a source."""

    def make(kind: str, **more: Any) -> FolderSource:
        folder = make_kind(tmp_path_factory.mktemp(kind) / "model", kind, **more)
        return folder_source(load_staged(str(folder), CPU), load_tokenizer(str(folder)), str(folder))

    return make


def scaled(name: str, kind: str | None, factor: float = 8.0) -> dict[str, Field]:
    """Metadata of a rotary scaling."""
    found = {f"{name}.rope.scaling.factor": Field("FLOAT32", factor)}
    return found | ({} if kind is None else {f"{name}.rope.scaling.type": Field("STRING", kind)})


def with_fields(source: FolderSource, fields: Mapping[str, Field], path: Path) -> Path:
    """The same tensors under other metadata."""
    return plain_file(replace(source, fields={**source.fields, **fields}), path)


def in_llama_cpp(path: Path) -> torch.Tensor:
    """Log probabilities of every next token."""
    runner = LlamaCpp(path, IDS.shape[1])
    found = torch.from_numpy(runner.logits(IDS[0].tolist())).log_softmax(-1)
    runner.close()
    return found


@torch.inference_mode()
def divergence(staged: Any, theirs: torch.Tensor) -> float:
    """The largest KL of llama.cpp's predictions from ours."""
    own = staged.model(input_ids=IDS).logits[0].log_softmax(-1)
    return float((own.exp() * (own - theirs)).sum(-1).max())


@pytest.mark.parametrize("kind", ["llama", "llama3", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_linear_scaling_is_read_as_llama_cpp_reads_it(kind: str, made: Made, tmp_path: Path) -> None:
    source = made(kind)
    path = with_fields(source, scaled(source.architecture.name, "linear"), tmp_path / "model.gguf")
    theirs = in_llama_cpp(path)
    assert divergence(load_gguf(path, CPU), theirs) < 1e-4
    assert divergence(source.staged, theirs) > 1e-3, "the scaling makes no difference here"


def test_other_ways_to_say_it(made: Made, tmp_path: Path) -> None:
    llama, gemma = made("llama"), made("gemma3")
    cases: list[tuple[FolderSource, dict[str, Field]]] = [
        (llama, scaled("llama", None)),  # no type is linear
        (llama, {"llama.rope.scale_linear": Field("FLOAT32", 8.0)}),
        (llama, scaled("llama", "linear", 0.0)),  # no factor is none
        (llama, scaled("llama", "none")),
        (gemma, scaled("gemma3", "none")),
        (gemma, {"gemma3.rope.freq_base_swa": Field("FLOAT32", 500.0)}),
    ]
    for index, (source, fields) in enumerate(cases):
        path = with_fields(source, fields, tmp_path / f"{index}.gguf")
        assert divergence(load_gguf(path, CPU), in_llama_cpp(path)) < 1e-4, fields


def test_other_scalings_are_refused_by_name(made: Made, tmp_path: Path) -> None:
    source, factor = made("llama"), {"llama.rope.scaling.attn_factor": Field("FLOAT32", 1.5)}
    for kind in ("yarn", "longrope"):
        path = with_fields(source, {**scaled("llama", kind), **factor}, tmp_path / f"{kind}.gguf")
        expected = rf"{kind}\.gguf: llama.rope.scaling.type '{kind}', llama.rope.scaling.attn_factor 1.5: only linear"
        with pytest.raises(InputError, match=expected):
            load_gguf(path, CPU)
    gemma = with_fields(made("gemma2"), scaled("gemma2", "none"), tmp_path / "gemma.gguf")
    with pytest.raises(InputError, match="type 'none' with a factor of 8"):
        load_gguf(gemma, CPU)


@pytest.mark.parametrize(("kind", "blocks"), [("gemma2", 46), ("gemma3", 62)])
def test_attention_of_27b_models_is_scaled_by_hidden_states(kind: str, blocks: int, made: Made, tmp_path: Path) -> None:
    sizes = {"head_dim": 32, "num_hidden_layers": blocks}
    source = made(kind, query_pre_attn_scalar=16, **sizes)
    path = plain_file(source, tmp_path / "model.gguf")
    theirs = in_llama_cpp(path)
    assert divergence(source.staged, theirs) < 1e-3
    assert divergence(load_gguf(path, CPU), theirs) < 1e-3
    with pytest.raises(InputError, match="scalar 32 other than hidden_size / num_attention_heads = 16"):
        made(kind, query_pre_attn_scalar=32, **sizes)
