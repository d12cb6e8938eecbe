"""A model's parameters: whether they are still what they were, their dtype, and a digest of all of them."""

import hashlib

import torch
from torch import nn


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


def parameter_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters, tied ones once."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
