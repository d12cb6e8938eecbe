"""Names and values of tensors: Hugging Face -> GGUF and back, by gguf's own tensor map."""

import math
from typing import Any

import torch
from torch import Tensor

from apportion.core.errors import InputError, first_few
from apportion.formats.ggml import gguf
from apportion.models.gguf.architectures import Architecture, head_dim

ROPE_FACTORS = "rope_freqs.weight"


def gguf_names(architecture: Architecture, names: list[str], blocks: int, where: str) -> dict[str, str]:
    """GGUF name of every tensor of a checkpoint.

    Raises:
        InputError: tensors without a name there, all of them listed.
    """
    arch = next(key for key, value in gguf().MODEL_ARCH_NAMES.items() if value == architecture.name)
    tensors = gguf().get_tensor_name_map(arch, blocks)
    found = {name: tensors.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    unknown = [name for name, own in found.items() if own is None]
    if unknown:
        raise InputError(
            f"MODEL {where}: {architecture.name} has no GGUF name for {first_few(unknown)}",
            "convert it with llama.cpp's convert_hf_to_gguf.py to f16 and give that file as MODEL",
        )
    return {name: str(own) for name, own in found.items()}


def to_gguf(tensor: Tensor, name: str, architecture: Architecture, config: Any) -> Tensor:
    """A checkpoint's tensor as GGUF stores it (same dtype, except shifted norms, which become float32).

    Args:
        name: in GGUF.
    """
    if architecture.permuted and (heads := permuted_heads(name, config)):
        return interleaved(tensor, heads)
    if architecture.norm_shift and name.endswith("norm.weight"):
        return tensor.float() + architecture.norm_shift
    return tensor


def from_gguf(tensor: Tensor, name: str, architecture: Architecture, config: Any) -> Tensor:
    """The reverse of `to_gguf`."""
    if architecture.permuted and (heads := permuted_heads(name, config)):
        return halved(tensor, heads)
    if architecture.norm_shift and name.endswith("norm.weight"):
        return tensor - architecture.norm_shift
    return tensor


def permuted_heads(name: str, config: Any) -> int:
    """Heads of a q or k tensor; 0 for others."""
    part = name.rsplit(".", 2)[-2] if name.count(".") >= 2 else ""
    return {"attn_q": int(config.num_attention_heads), "attn_k": int(config.num_key_value_heads)}.get(part, 0)


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves (transformers' rotary pairs) to neighbours (llama.cpp's).

    >>> interleaved(torch.arange(4), 1).tolist(), halved(interleaved(torch.arange(4), 1), 1).tolist()
    ([0, 2, 1, 3], [0, 1, 2, 3])
    """
    return tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def halved(tensor: Tensor, heads: int) -> Tensor:
    """The reverse of `interleaved`."""
    return tensor.view(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def rope_factors(config: Any) -> Tensor | None:
    """Llama 3's scaling of rotary frequencies, which GGUF stores as a tensor of divisors; None without it.

    Source: transformers' `_compute_llama3_parameters`, as llama.cpp's converter writes it.
    """
    rope = config.rope_parameters or {}
    if rope.get("rope_type") != "llama3":
        return None
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    size = head_dim(config)
    waves = [2 * math.pi * float(rope["rope_theta"]) ** (i / size) for i in range(0, size, 2)]

    def divisor(wave: float) -> float:
        if wave < original / high:
            return 1.0
        if wave > original / low:
            return factor
        smooth = (original / wave - low) / (high - low)
        return 1 / ((1 - smooth) / factor + smooth)

    return torch.tensor([divisor(wave) for wave in waves], dtype=torch.float32)
