"""The architectures that are converted, each by one description: its names, its metadata, and what is transposed.

Everything here follows llama.cpp's converter (`convert_hf_to_gguf.py`, `conversion/`), whose tensor map gguf ships.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from apportion.core.errors import InputError

Config = Any
Check = Callable[[Config], list[str]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a family of models is stored.

    Attributes:
        name: in GGUF. model_types: in `config.json`. config_class: of transformers.
        permuted: the rows of q and k are interleaved (rotary pairs side by side).
        norm_shift: what is added to norm weights (Gemma stores weight - 1, GGUF the weight).
        keys: (metadata key, kind, config attribute); absent or None attributes are left out.
        unsupported: what a configuration has that llama.cpp would ignore or read otherwise, all of it.
    """

    name: str
    model_types: tuple[str, ...]
    config_class: str
    keys: tuple[tuple[str, str, str], ...]
    permuted: bool = False
    norm_shift: float = 0.0
    unsupported: Check = lambda config: []


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

SILU = ("silu", "swish")
WRITTEN = ("default", "linear")  # types of rotary scaling that metadata can tell
SLIDING_THETA = 10000.0  # Gemma 3's rotary base where layers slide, which llama.cpp has as a constant
LARGEST = {"gemma2": 46, "gemma3": 62}  # blocks of the 27B models, by which llama.cpp knows them


def head_dim(config: Config) -> int:
    """Of one attention head."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def ropes_of(config: Config) -> dict[str, dict[str, Any]]:
    """Rotary settings by kind of layer, where they differ by it; else under an empty name."""
    rope = config.rope_parameters or {}
    kinds = {kind: own for kind, own in rope.items() if kind.endswith("_attention")}
    return {kind: own or {} for kind, own in kinds.items()} or {"": rope}


def plain_rope(config: Config) -> dict[str, Any]:
    """Rotary settings; those of full attention where they differ by kind of layer."""
    ropes = ropes_of(config)
    return ropes.get("", {}) | ropes.get("full_attention", {})


def odd_rope(rope: Mapping[str, Any], known: Collection[str], of: str = "") -> list[str]:
    """A rotary scaling that llama.cpp does not have there."""
    kind = rope.get("rope_type", "default")
    return [] if kind in known else [f"rope_type {kind!r}{of}"]


def odd_activation(config: Config, *known: str) -> list[str]:
    """An activation other than the one that llama.cpp has."""
    found = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return [] if found in known else [f"activation {found!r}"]


def llama_alone(config: Config) -> list[str]:
    """Another activation, a rotary scaling neither linear nor Llama 3's, or (Mistral) a sliding window."""
    window = config.sliding_window if config.model_type == "mistral" else None
    found = [] if window is None else [f"a sliding window of {window}"]
    return [*found, *odd_rope(plain_rope(config), (*WRITTEN, "llama3")), *odd_activation(config, *SILU)]


def qwen3_alone(config: Config) -> list[str]:
    """Another activation, a rotary scaling that is not linear, or a sliding window, which Qwen has not there."""
    found = ["a sliding window"] if getattr(config, "use_sliding_window", False) else []
    return [*found, *odd_rope(plain_rope(config), WRITTEN), *odd_activation(config, *SILU)]


def qwen2_alone(config: Config) -> list[str]:
    """As Qwen 3, and heads must divide the hidden states among them."""
    head, heads, hidden = head_dim(config), config.num_attention_heads, config.hidden_size
    found = [] if head * heads == hidden else [f"head_dim {head} for {heads} heads of {hidden} in all"]
    return found + qwen3_alone(config)


def attention_size(architecture: str, blocks: int, hidden: int, heads: int, head: int) -> int:
    """What llama.cpp divides Gemma's attention by the root of: the head's size; in a 27B model, hidden states by heads.

    >>> attention_size("gemma3", 62, 5376, 32, 128), attention_size("gemma3", 48, 3840, 16, 256)
    (168, 256)
    """
    return hidden // heads if LARGEST.get(architecture) == blocks else head


def odd_gemma(config: Config, architecture: str, period: int) -> list[str]:
    """Other sliding layers than llama.cpp takes for such, a scale of attention or an activation other than its own."""
    types = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(len(config.layer_types))]
    found = [] if list(config.layer_types) == types else [f"layer_types other than one full attention in {period}"]
    scale, head = config.query_pre_attn_scalar, head_dim(config)
    size = attention_size(architecture, len(types), config.hidden_size, config.num_attention_heads, head)
    if scale != size:
        other = "head_dim" if size == head else f"hidden_size / num_attention_heads = {size}"
        found.append(f"query_pre_attn_scalar {scale} other than {other}")
    return found + odd_activation(config, "gelu_pytorch_tanh")


def gemma2_alone(config: Config) -> list[str]:
    """As `odd_gemma`; a rotary scaling that is not linear, or no caps, where llama.cpp takes 50 and 30."""
    caps = [name for _, _, name in CAPS if getattr(config, name) is None]
    found = [f"no {name}" for name in caps] + odd_rope(plain_rope(config), WRITTEN)
    return odd_gemma(config, "gemma2", 2) + found


def gemma3_alone(config: Config) -> list[str]:
    """As `odd_gemma`; rotary scaling but a linear one of full attention, another base where layers slide."""
    ropes = ropes_of(config)
    full, sliding = (ropes.get(f"{kind}_attention", {}) for kind in ("full", "sliding"))
    found = odd_rope(full, WRITTEN, " of full attention") + odd_rope(sliding, ("default",), " of sliding attention")
    if (base := sliding.get("rope_theta", SLIDING_THETA)) != SLIDING_THETA:
        found.append(f"rope_theta {base:g} of sliding attention")
    if config.use_bidirectional_attention:
        found.append("attention to later tokens")
    return odd_gemma(config, "gemma3", 6) + found


ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral"), "LlamaConfig", COMMON + ROPE, permuted=True, unsupported=llama_alone),
    Architecture("qwen2", ("qwen2",), "Qwen2Config", COMMON + ROPE, unsupported=qwen2_alone),
    Architecture("qwen3", ("qwen3",), "Qwen3Config", COMMON + ROPE + HEAD, unsupported=qwen3_alone),
    Architecture(
        "gemma2",
        ("gemma2",),
        "Gemma2Config",
        COMMON + HEAD + WINDOW + CAPS + ROPE,
        norm_shift=1.0,
        unsupported=gemma2_alone,
    ),
    Architecture(
        "gemma3",
        ("gemma3_text",),
        "Gemma3TextConfig",
        COMMON + HEAD + WINDOW + CAPS + ROPE,
        norm_shift=1.0,
        unsupported=gemma3_alone,
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
            "write a folder instead (--format checkpoint); or give the f16 file of llama.cpp's convert_hf_to_gguf.py, "
            f"where it writes the model as one of {', '.join(item.name for item in ARCHITECTURES)}",
        )
    if problems := found.unsupported(config):
        raise InputError(
            f"MODEL {where}: {config.model_type} with {', '.join(problems)} is not what llama.cpp's {found.name} "
            "computes",
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
