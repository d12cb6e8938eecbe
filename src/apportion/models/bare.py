"""Weights of fewer than sixteen bits that no `quantization_config` explains: taken where that is exact, or refused."""

from dataclasses import replace

import torch
from torch import Tensor

from apportion.core.errors import InputError, first_few
from apportion.formats.safetensors import CODES, Entry
from apportion.models.blockwise import EIGHT
from apportion.models.source import Source

WHOLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def plain_source(model: str, source: Source) -> Source:
    """A folder without a `quantization_config`, with what is plainly cast to FP8 as if it lay there in bfloat16.

    Raises:
        InputError: integers for weights, or FP8 with scales: how they are to be decoded is not said. All are counted,
            the first named.

    Cost: none; bfloat16 holds every number of FP8.
    """
    narrow = {name: own for name, own in source.tensors.items() if is_weight(name) and own.dtype not in WHOLE}
    scaled = {name.rpartition(".")[0] for name in source.tensors if "scale" in name.rpartition(".")[2]}
    unclear = [
        f"{name} ({CODES[own.dtype]}{' with scales' if own.dtype in EIGHT else ''})"
        for name, own in sorted(narrow.items())
        if own.dtype not in EIGHT or name.rpartition(".")[0] in scaled
    ]
    if unclear:
        raise InputError(
            f"MODEL {model}: its config.json has no quantization_config, which must say what numbers these weights "
            f"are: {first_few(unclear)}",
            "bring the config.json that belongs to them, or give the full-precision checkpoint",
        )
    if not narrow:
        return source

    def tensor(name: str) -> Tensor:
        found = source.tensor(name)
        return found.to(torch.bfloat16) if name in narrow else found

    shown = {name: Entry(torch.bfloat16, own.shape) if name in narrow else own for name, own in source.tensors.items()}
    config = {key: "bfloat16" if "float8" in str(own) and "dtype" in key else own for key, own in source.config.items()}
    return replace(source, config=config, tensors=shown, decode=tensor)


def is_weight(name: str) -> bool:
    """Whether a tensor is one of a layer's weights by its name, and no mask or table of positions."""
    return name.endswith("weight") or ".experts." in name
