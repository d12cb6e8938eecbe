"""A configuration as GGUF metadata, and back."""

from collections.abc import Mapping
from typing import Any

from apportion.formats.gguf_file import Field
from apportion.models.gguf.architectures import Architecture, head_dim

DEFAULT_THETA = 10000.0


def model_fields(config: Any, architecture: Architecture, name: str) -> dict[str, Field]:
    """`general.*` and the architecture's own keys.

    Args:
        name: `general.name`.
    """
    fields = {
        "general.architecture": Field("STRING", architecture.name),
        "general.type": Field("STRING", "model"),
        "general.name": Field("STRING", name),
    }
    for key, kind, attribute in architecture.keys:
        value = attribute_of(config, attribute)
        if value is not None:
            fields[f"{architecture.name}.{key}"] = Field(kind, float(value) if kind == "FLOAT32" else int(value))
    if architecture.name == "llama":
        fields["llama.vocab_size"] = Field("UINT32", int(config.vocab_size))
        fields["llama.rope.dimension_count"] = Field("UINT32", head_dim(config))
    if head_dim(config) * config.num_attention_heads != config.hidden_size:  # otherwise llama.cpp works it out
        own = f"{architecture.name}.attention"
        fields |= {f"{own}.{key}_length": Field("UINT32", head_dim(config)) for key in ("key", "value")}
    return fields


def attribute_of(config: Any, attribute: str) -> Any:
    """A value of the configuration; the rotary base where transformers keeps it."""
    if attribute == "rope_theta":
        rope = config.rope_parameters or {}
        rope = rope.get("full_attention", rope)
        return rope.get("rope_theta", DEFAULT_THETA)
    if attribute == "head_dim":
        return head_dim(config)
    return getattr(config, attribute, None)


def config_from(
    fields: Mapping[str, Any], architecture: Architecture, *, vocabulary: int, tied: bool, biased: bool
) -> Any:
    """A transformers configuration of a GGUF file's metadata (plain values by key).

    Args:
        vocabulary: rows of the embedding. tied: there is no output head of its own. biased: q, k and v have biases.
    """
    import transformers

    settings: dict[str, Any] = {}
    for key, _, attribute in architecture.keys:
        value = fields.get(f"{architecture.name}.{key}")
        if value is not None and attribute != "rope_theta":
            settings[attribute] = value
    settings |= {"vocab_size": vocabulary, "tie_word_embeddings": tied, "dtype": "bfloat16"}
    settings |= token_ids(fields)
    settings |= rotary(fields, architecture)
    if size := fields.get(f"{architecture.name}.attention.key_length"):
        settings["head_dim"] = size
    if architecture.name == "llama":
        settings["attention_bias"] = biased
    if architecture.name.startswith("gemma"):
        settings["query_pre_attn_scalar"] = settings["head_dim"]
        settings["hidden_activation"] = "gelu_pytorch_tanh"
        settings.setdefault("attn_logit_softcapping", None)
        settings.setdefault("final_logit_softcapping", None)
    return getattr(transformers, architecture.config_class)(**settings)


def rotary(fields: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """`rope_parameters`; Gemma 3's sliding layers keep their own base."""
    theta = float(fields.get(f"{architecture.name}.rope.freq_base", DEFAULT_THETA))
    if architecture.name != "gemma3":
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    full, sliding = ({"rope_type": "default", "rope_theta": base} for base in (theta, DEFAULT_THETA))
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def token_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens that a configuration names."""
    kinds = {"bos": "bos", "eos": "eos", "pad": "padding"}
    found = {f"{own}_token_id": fields.get(f"tokenizer.ggml.{theirs}_token_id") for own, theirs in kinds.items()}
    return {key: int(value) for key, value in found.items() if value is not None}
