"""Where a loaded model's tensors come from: what is written back is written from here, under these names.

A checkpoint's own files know more than the loaded class: tensors that it has no place for, dtypes that it does not
keep, names that it calls otherwise. So the model in memory is where weights are tried, and the origin is where
everything that is not quantized is copied from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apportion.core.artifact import Json
from apportion.formats.safetensors import Entry, entry_of
from apportion.models.names import Names
from apportion.models.source import Source


@dataclass(frozen=True, slots=True)
class Origin:
    """The tensors of a checkpoint as its files name them.

    Attributes:
        tensors: dtype and shape of each, by the file's name. read: gives one of them.
        paths: for each module whose weight is one tensor of the files, that tensor's name without `.weight`.
        config: as in `config.json`; None where the model did not come from a folder.
        folder: where it came from. companions: its other files. left: files not carried along, with reasons.
        unknown: names of tensors that the loaded class has no place for.
    """

    tensors: Mapping[str, Entry]
    read: Callable[[str], Tensor]
    paths: Mapping[str, str]
    config: Json | None = None
    folder: Path | None = None
    companions: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def origin_of_folder(source: Source, names: Names) -> Origin:
    """Of a model that was loaded from a folder."""
    paths = {
        parameter.removesuffix(".weight"): stored.removesuffix(".weight")
        for parameter, stored in names.single.items()
        if parameter.endswith(".weight") and stored.endswith(".weight")
    }
    return Origin(
        tensors=source.tensors,
        read=source.tensor,
        paths=paths,
        config=source.config,
        folder=source.folder,
        companions=source.companions,
        left=source.left,
        unknown=names.unknown,
    )


def origin_of_model(model: nn.Module) -> Origin:
    """Of a model that is only in memory (made by a test, or decoded from another format): its own names.

    Tied tensors count once, under their first name. The tensors are those of now: put what is loaded in another dtype
    afterwards.
    """
    kept = untied(model)
    paths = {name.removesuffix(".weight"): name.removesuffix(".weight") for name in kept if name.endswith(".weight")}
    return Origin({name: entry_of(tensor) for name, tensor in kept.items()}, kept.__getitem__, paths)


def untied(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every shared tensor once, under its first name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            found[name] = tensor.detach()
    return found


def own_weights(model: Any, origin: Origin, paths: list[str]) -> dict[str, Tensor]:
    """The weights of linears as the files hold them, by module path: those in memory where they are the same.

    Raises:
        KeyError: a weight is not one tensor of the files.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        loaded = model.get_submodule(path).weight.detach()
        stored = f"{origin.paths[path]}.weight"
        # a file in a wider dtype than the model was loaded in holds what rounding should start from
        found[path] = loaded if origin.tensors[stored].dtype == loaded.dtype else origin.read(stored)
    return found


def foreign(model: Any, origin: Origin, paths: list[str]) -> list[str]:
    """Linears whose weight in memory is not one tensor of the files, by name, shape and bytes."""
    return [path for path in paths if not is_same(model.get_submodule(path).weight.detach(), origin, path)]


def is_same(loaded: Tensor, origin: Origin, path: str) -> bool:
    """Whether a weight in memory is what the files hold for its module."""
    name = f"{origin.paths[path]}.weight" if path in origin.paths else ""
    if name not in origin.tensors or origin.tensors[name].shape != tuple(loaded.shape):
        return False
    return bool(torch.equal(loaded, origin.read(name).to(loaded)))
