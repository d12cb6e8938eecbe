"""The architectures that are converted, each by one description: its names, its metadata, and what is transposed.

Everything here follows llama.cpp's converter (`convert_hf_to_gguf.py`, `conversion/`), whose tensor map gguf ships.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apportion.core.errors import InputError

Config = Any
Check = Callable[[Config], str]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a family of models is stored.

    Attributes:
        name: in GGUF. model_types: in `config.json`. config_class: of transformers.
        permuted: the rows of q and k are interleaved (rotary pairs side by side).
        norm_shift: what is added to norm weights (Gemma stores weight - 1, GGUF the weight).
        keys: (metadata key, kind, config attribute); absent or None attributes are left out.
        unsupported: what a configuration has that llama.cpp would ignore or read otherwise; empty if nothing.
    """

    name: str
    model_types: tuple[str, ...]
    config_class: str
    keys: tuple[tuple[str, str, str], ...]
    permuted: bool = False
    norm_shift: float = 0.0
    unsupported: Check = lambda config: ""


COMMON = (
    ("block_count", "UINT32", "num_hidden_layers"),
    ("context_length", "UINT32", "max_position_embeddings"),
    ("embedding_length", "UINT32", "hidden_size"),
    ("feed_forward_length", "UINT32", "intermediate_size"),
    ("attention.head_count", "UINT32", "num_attention_heads"),
    ("attention.head_count_kv", "UINT32", "num_key_value_heads"),
    ("attention.layer_norm_rms_epsilon", "FLOAT32", "rms_norm_eps"),
)
ROPE = (("rope.freq_base", "FLOAT32", "rope_theta"),)
HEAD = (("attention.key_length", "UINT32", "head_dim"), ("attention.value_length", "UINT32", "head_dim"))
WINDOW = (("attention.sliding_window", "UINT32", "sliding_window"),)
CAPS = (
    ("attn_logit_softcapping", "FLOAT32", "attn_logit_softcapping"),
    ("final_logit_softcapping", "FLOAT32", "final_logit_softcapping"),
)

LARGEST = {"gemma2": 46, "gemma3": 62}  # blocks of the 27B models, by which llama.cpp knows them


def head_dim(config: Config) -> int:
    """Of one attention head."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def plain_rope(config: Config) -> str:
    """A rotary scaling other than Llama 3's, or (Mistral) a sliding window."""
    if config.model_type == "mistral" and config.sliding_window is not None:
        return f"a sliding window of {config.sliding_window}"
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    return "" if kind in ("default", "llama3") else f"rope_type {kind!r}"


def no_window(config: Config) -> str:
    """A sliding window that llama.cpp does not have for Qwen."""
    return "a sliding window" if getattr(config, "use_sliding_window", False) else plain_rope(config)


def qwen2_heads(config: Config) -> str:
    """llama.cpp's qwen2 has heads that divide the hidden states among them."""
    if head_dim(config) * config.num_attention_heads != config.hidden_size:
        return f"head_dim {head_dim(config)} for {config.num_attention_heads} heads of {config.hidden_size} in all"
    return no_window(config)


def attention_size(architecture: str, blocks: int, hidden: int, heads: int, head: int) -> int:
    """What llama.cpp divides Gemma's attention by the root of: the head's size; in a 27B model, hidden states by heads.

    >>> attention_size("gemma3", 62, 5376, 32, 128), attention_size("gemma3", 48, 3840, 16, 256)
    (168, 256)
    """
    return hidden // heads if LARGEST.get(architecture) == blocks else head


def gemma_pattern(architecture: str, period: int) -> Check:
    """Layers that slide must be those that llama.cpp takes for sliding, and the attention's scale must be its own."""

    def check(config: Config) -> str:
        expected = [
            "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(len(config.layer_types))
        ]
        if list(config.layer_types) != expected:
            return f"layer_types other than one full attention in {period}"
        scale, head = config.query_pre_attn_scalar, head_dim(config)
        size = attention_size(architecture, len(expected), config.hidden_size, config.num_attention_heads, head)
        other = "head_dim" if size == head else f"hidden_size / num_attention_heads = {size}"
        return "" if scale == size else f"query_pre_attn_scalar {scale} other than {other}"

    return check


ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral"), "LlamaConfig", COMMON + ROPE, permuted=True, unsupported=plain_rope),
    Architecture("qwen2", ("qwen2",), "Qwen2Config", COMMON + ROPE, unsupported=qwen2_heads),
    Architecture("qwen3", ("qwen3",), "Qwen3Config", COMMON + ROPE + HEAD, unsupported=no_window),
    Architecture(
        "gemma2",
        ("gemma2",),
        "Gemma2Config",
        COMMON + HEAD + WINDOW + CAPS,
        norm_shift=1.0,
        unsupported=gemma_pattern("gemma2", 2),
    ),
    Architecture(
        "gemma3",
        ("gemma3_text",),
        "Gemma3TextConfig",
        COMMON + HEAD + WINDOW + CAPS + ROPE,
        norm_shift=1.0,
        unsupported=gemma_pattern("gemma3", 6),
    ),
)


def architecture_of(config: Config, where: str) -> Architecture:
    """The description of a configuration's model.

    Raises:
        InputError: none fits, or the configuration has something that llama.cpp does not do.
    """
    found = next((item for item in ARCHITECTURES if config.model_type in item.model_types), None)
    if found is None:
        known = ", ".join(kind for item in ARCHITECTURES for kind in item.model_types)
        raise InputError(
            f"MODEL {where}: architecture {config.model_type!r} has no map to GGUF here; known: {known}",
            "convert it with llama.cpp's convert_hf_to_gguf.py to f16 and give that file as MODEL",
        )
    if problem := found.unsupported(config):
        raise InputError(
            f"MODEL {where}: {config.model_type} with {problem} is not what llama.cpp's {found.name} computes",
            "convert it with llama.cpp's convert_hf_to_gguf.py to f16 and give that file as MODEL",
        )
    return found


def architecture_named(name: str, where: str) -> Architecture:
    """The description of a GGUF file's model.

    Raises:
        InputError: none has this name.
    """
    found = next((item for item in ARCHITECTURES if item.name == name), None)
    if found is None:
        raise InputError(
            f"MODEL {where}: general.architecture {name!r} cannot be run here",
            f"known: {', '.join(item.name for item in ARCHITECTURES)}",
        )
    return found
