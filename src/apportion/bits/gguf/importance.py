"""What an error in each column of a matrix costs: the mean square of what the model multiplies it with.

llama.cpp calls this an importance matrix. Its own tool leaves the embedding out; tied to the output head, here it has
the head's inputs.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from apportion.core.artifact import write_bytes
from apportion.core.errors import ArtifactCorruptError, ArtifactError
from apportion.core.progress import progress
from apportion.models.staged import StagedModel

IMPORTANCE = "importance.imatrix"


def input_squares(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> dict[str, Tensor]:
    """Mean square of every linear's inputs over a text, with the weights that are in place now.

    Returns:
        float32 on the CPU, by module path: all linears of the blocks and, under its own path, the output head (whose
        weight may be the embedding's).

    Cost: one forward pass, without the product with the head.
    """
    totals: dict[str, Tensor] = {}
    with progress("importance", len(windows), "windows") as advance:
        for part in windows.split(max(1, staged_tokens(staged) // windows.shape[1])):
            found = staged.within_memory(part, lambda part=part: squares_of(staged, part))  # type: ignore[misc]
            for path, squares in found.items():
                totals[path] = totals.get(path, 0.0) + squares
            advance(len(part))
    return {path: total / windows.numel() for path, total in totals.items()}


def squares_of(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> dict[str, Tensor]:
    """Sum of the squares of what every linear and the head are given, in one pass that is whole or fails."""
    staged.embed(windows)  # what is found out about the model once is found out before it is watched
    found: dict[str, Tensor] = {}
    with watched(staged.model, list(staged.originals), found):
        hidden = staged.run_blocks(windows)
    found[staged.layout.head] = sum_of_squares(head_inputs(staged, hidden))
    return found


class HeadReached(Exception):  # noqa: N818  it stops a forward pass, nothing is wrong
    """The head was given its inputs; its product with the vocabulary is not wanted."""


def head_inputs(
    staged: StagedModel, hidden: Float[Tensor, "windows tokens hidden"]
) -> Float[Tensor, "windows*tokens one hidden"]:
    """What the output head's matrix is multiplied with, of states after the last block."""
    staged.logits(hidden[:1, :1])  # what is found out about the model once is found out here
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach())
        raise HeadReached

    handle = staged.model.get_submodule(staged.layout.head).register_forward_pre_hook(stop)
    try:
        with suppress(HeadReached):
            staged.logits(hidden)
    finally:
        handle.remove()
    return seen[0]


def sum_of_squares(inputs: Tensor) -> Float[Tensor, " columns"]:
    """By column, on the CPU."""
    return inputs.detach().flatten(0, -2).float().pow(2).sum(0).cpu()


def staged_tokens(staged: StagedModel) -> int:
    """Tokens that are run at once."""
    return 4096 if staged.placement.device.startswith("cuda") else 1024


@contextmanager
def watched(model: Any, paths: list[str], totals: dict[str, Tensor]) -> Iterator[None]:
    """Add up the squares of what some modules are given."""

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            totals[path] = totals.get(path, 0.0) + sum_of_squares(args[0])

        return hook

    handles = [model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def save_imatrix(path: Path, importance: Mapping[str, Tensor], source: str) -> None:
    """The importance as a file for llama.cpp's `llama-quantize --imatrix` (its first format).

    Args:
        importance: by GGUF tensor name.
    """
    parts = [struct.pack("<i", len(importance))]
    for name, values in importance.items():
        encoded = name.encode()
        parts.append(struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", 1, len(values)))
        parts.append(values.float().numpy().tobytes())
    parts.append(struct.pack("<ii", 1, len(source.encode())) + source.encode())
    write_bytes(path, b"".join(parts))


def load_imatrix(path: Path) -> dict[str, Tensor]:
    """What `save_imatrix` wrote, by GGUF tensor name.

    Raises:
        ArtifactError: missing. ArtifactCorruptError: cut off.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", "measure again, without --reuse") from error
    found, at = {}, 4
    try:
        for _ in range(struct.unpack_from("<i", data)[0]):
            length = struct.unpack_from("<i", data, at)[0]
            name, at = data[at + 4 : at + 4 + length].decode(), at + 4 + length
            calls, count = struct.unpack_from("<ii", data, at)
            values = torch.frombuffer(bytearray(data[at + 8 : at + 8 + 4 * count]), dtype=torch.float32)
            found[name], at = values / calls, at + 8 + 4 * count
    except (struct.error, ValueError) as error:
        raise ArtifactCorruptError(f"{path}: is cut off", "measure again, without --reuse") from error
    return found
