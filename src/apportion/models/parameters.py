"""A model's parameters: whether they are still what they were, their dtype, and a digest of all of them."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Give parameters and saved buffers a dtype, as loading in it would.

    `Module.to(dtype)` would also cast what is computed at construction, such as rotary frequencies: in bfloat16
    those are off by up to 0.4 %, an error of phase that grows with the position.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    saved = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)


@contextmanager
def held_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """A model in another dtype, and afterwards the very tensors that it had: recorded graphs read them where they are.

    Cost: both in memory at once, where the dtype is another.
    """
    own = [(held, held.data) for held in (*model.parameters(), *model.buffers())]
    try:
        cast_parameters(model, dtype)  # memory may run out half-way
        yield
    finally:
        for held, data in own:
            held.data = data


def round_computed(model: nn.Module, like: nn.Module) -> None:
    """Round what a class computes at construction as another instance of it has it in a narrower dtype.

    Gemma's factor of the embedding is the square root of its width in the dtype that it was loaded in: 25.25 in
    bfloat16 and 25.298 in float32. A checkpoint in bfloat16 means the first, whatever its weights are decoded to.
    """
    saved = set(like.state_dict())
    for name, buffer in like.named_buffers():
        parent, _, leaf = name.rpartition(".")
        own = getattr(model.get_submodule(parent), leaf)
        if name not in saved and buffer.is_floating_point() and buffer.dtype.itemsize < own.dtype.itemsize:
            own.data = own.data.to(buffer.dtype).to(own.dtype)


def parameter_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters, tied ones once."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def swapped(model: Any, weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A model with other weights in some of its modules, by path, and its own again afterwards.

    Yields:
        The weights that were there.
    """
    own = {path: model.get_submodule(path).weight.data for path in weights}
    try:
        for path, weight in weights.items():
            model.get_submodule(path).weight.data = weight
        yield own
    finally:
        for path, weight in own.items():
            model.get_submodule(path).weight.data = weight
