"""A configuration as GGUF metadata, and back."""

from collections.abc import Mapping
from typing import Any

from apportion.core.errors import InputError
from apportion.formats.gguf_file import Field
from apportion.models.gguf.architectures import SLIDING_THETA, Architecture, attention_size, head_dim, plain_rope

DEFAULT_THETA = 10000.0
SOFT_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # Gemma 2's where a file has none


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
    if plain_rope(config).get("rope_type") == "linear":
        prefix = f"{architecture.name}.rope.scaling"
        fields[f"{prefix}.type"] = Field("STRING", "linear")
        fields[f"{prefix}.factor"] = Field("FLOAT32", float(plain_rope(config)["factor"]))
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
        return plain_rope(config).get("rope_theta", DEFAULT_THETA)
    if attribute == "head_dim":
        return head_dim(config)
    return getattr(config, attribute, None)


def config_from(
    fields: Mapping[str, Any], architecture: Architecture, where: str, *, vocabulary: int, tied: bool, biased: bool
) -> Any:
    """A transformers configuration of a GGUF file's metadata (plain values by key).

    Args:
        vocabulary: rows of the embedding. tied: there is no output head of its own. biased: q, k and v have biases.

    Raises:
        InputError: a rotary scaling that is not run here.
    """
    import transformers

    settings: dict[str, Any] = {}
    for key, _, attribute in architecture.keys:
        value = fields.get(f"{architecture.name}.{key}")
        if value is not None and attribute != "rope_theta":
            settings[attribute] = value
    settings |= {"vocab_size": vocabulary, "tie_word_embeddings": tied, "dtype": "bfloat16"}
    settings |= token_ids(fields)
    settings |= rotary(fields, architecture, where)
    if size := fields.get(f"{architecture.name}.attention.key_length"):
        settings["head_dim"] = size
    if architecture.name == "llama":
        settings["attention_bias"] = biased
    if architecture.name.startswith("gemma"):
        blocks, hidden, heads = (settings[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
        head = settings.setdefault("head_dim", hidden // heads)
        settings["query_pre_attn_scalar"] = attention_size(architecture.name, blocks, hidden, heads, head)
        settings["hidden_activation"] = "gelu_pytorch_tanh"
        caps = SOFT_CAPS if architecture.name == "gemma2" else dict.fromkeys(SOFT_CAPS)
        settings = {**caps, **settings}
    return getattr(transformers, architecture.config_class)(**settings)


def rotary(fields: Mapping[str, Any], architecture: Architecture, where: str) -> dict[str, Any]:
    """`rope_parameters`; Gemma 3's sliding layers keep their own base and are not scaled.

    Raises:
        InputError: a scaling other than a linear one.
    """
    theta = float(fields.get(f"{architecture.name}.rope.freq_base", DEFAULT_THETA))
    full = {"rope_type": "default", "rope_theta": theta}
    if (factor := linear_factor(fields, architecture.name, where)) != 1:
        full |= {"rope_type": "linear", "factor": factor}
    if architecture.name != "gemma3":
        return {"rope_parameters": full}
    base = float(fields.get(f"{architecture.name}.rope.freq_base_swa", SLIDING_THETA))
    sliding = {"rope_type": "default", "rope_theta": base}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def linear_factor(fields: Mapping[str, Any], name: str, where: str) -> float:
    """What rotary positions are divided by, as llama.cpp reads it: linear unless another type is named; 0 is none.

    Raises:
        InputError: another type, or rotated vectors made longer or shorter.
    """
    prefix = f"{name}.rope.scaling"
    kind = fields.get(f"{prefix}.type", "linear")
    odd = [] if kind in ("linear", "none") else [f"{prefix}.type {kind!r}"]
    if (length := fields.get(f"{prefix}.attn_factor", 1.0)) != 1:
        odd.append(f"{prefix}.attn_factor {length:g}")
    factor = float(fields.get(f"{prefix}.factor", fields.get(f"{name}.rope.scale_linear", 0.0))) or 1.0
    if kind == "none" and name == "gemma2" and factor != 1:  # llama.cpp scales its sliding layers all the same
        odd.append(f"{prefix}.type 'none' with a factor of {factor:g}")
    if odd:
        raise InputError(
            f"MODEL {where}: {', '.join(odd)}: only linear scaling is read from a GGUF file",
            "give the Hugging Face folder that it was converted from",
        )
    return factor if kind == "linear" else 1.0


def token_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens that a configuration names."""
    kinds = {"bos": "bos", "eos": "eos", "pad": "padding"}
    found = {f"{own}_token_id": fields.get(f"tokenizer.ggml.{theirs}_token_id") for own, theirs in kinds.items()}
    return {key: int(value) for key, value in found.items() if value is not None}
