"""What of a configuration GGUF metadata tells: read and written as llama.cpp has it, else refused by name."""

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


LINEAR = {"rope_type": "linear", "rope_theta": 20000.0, "factor": 8.0}
SLIDING = {"rope_type": "default", "rope_theta": 10000.0}
WRITTEN = {
    "llama": LINEAR,
    "qwen2": LINEAR,
    "qwen3": LINEAR,
    "gemma2": {"rope_type": "default", "rope_theta": 500.0},
    "gemma2 linear": LINEAR,
    "gemma3": {"full_attention": LINEAR, "sliding_attention": SLIDING},
}


@pytest.mark.parametrize("case", WRITTEN)
def test_base_and_linear_scaling_of_a_folder_are_written(case: str, made: Made, tmp_path: Path) -> None:
    source = made(case.split()[0], rope_parameters=WRITTEN[case])
    path = plain_file(source, tmp_path / "model.gguf")
    theirs, again = in_llama_cpp(path), load_gguf(path, CPU)
    assert divergence(source.staged, theirs) < 1e-4
    assert divergence(again, theirs) < 1e-4
    assert again.model.config.rope_parameters == source.staged.model.config.rope_parameters


def test_gemma_2_without_caps_has_those_of_llama_cpp(made: Made, tmp_path: Path) -> None:
    source = made("gemma2")
    fields = {key: field for key, field in source.fields.items() if not key.endswith("softcapping")}
    path = plain_file(replace(source, fields=fields), tmp_path / "model.gguf")
    config = load_gguf(path, CPU).model.config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert divergence(source.staged, in_llama_cpp(path)) < 1e-5  # the checkpoint's own are these


LLAMA3 = {**SLIDING, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {**SLIDING, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
    ("qwen2", {"hidden_act": "gelu", "head_dim": 32}, "head_dim 32 for 4 heads of 64 in all, activation 'gelu'"),
    ("qwen3", {"hidden_act": "relu", "rope_parameters": LLAMA3}, "rope_type 'llama3', activation 'relu'"),
    ("qwen2", {"rope_parameters": YARN}, "rope_type 'yarn'"),
    ("gemma2", {"hidden_activation": "silu", "rope_parameters": YARN}, "activation 'silu', rope_type 'yarn'"),
    ("gemma2", {"final_logit_softcapping": None}, "no final_logit_softcapping"),
    ("gemma3", {"hidden_activation": "gelu", "use_bidirectional_attention": True},
     "activation 'gelu', attention to later tokens"),
    ("gemma3", {"rope_parameters": {"full_attention": YARN, "sliding_attention": LINEAR}},
     "rope_type 'yarn' of full attention, rope_type 'linear' of sliding attention, "
     "rope_theta 20000 of sliding attention"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "more", "named"), REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(kind: str, more: dict[str, Any], named: str, made: Made) -> None:
    with pytest.raises(InputError, match=f"{kind}\\w* with {named} is not what llama.cpp's {kind} computes"):
        made(kind, **more)
