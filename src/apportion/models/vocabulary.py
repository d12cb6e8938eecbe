"""A model's embedding and head: the matrices outside of its blocks that have a row for every token.

Tied, they are one matrix of the files. Which module a tensor of the files is, and whether it is the one in memory, is
looked up as for the blocks' linears.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from apportion.models.origin import is_same
from apportion.models.staged import StagedModel

NAMES = ("embedding", "head")


@dataclass(frozen=True, slots=True)
class VocabularyMatrix:
    """Embedding or head.

    Attributes:
        name: one of NAMES; a tied pair is called `embedding`.
        path: of its module. stored: what its tensors are called in the files, without `.weight`.
        shape, dtype: as the files have it.
        twin: module path of the head that is tied to it; empty where none is. twin_stored: its name in the files.
    """

    name: str
    path: str
    stored: str
    shape: tuple[int, int]
    dtype: torch.dtype
    twin: str = ""
    twin_stored: str = ""

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Tensors of the files that it takes the place of: some files hold a tied head a second time."""
        stored = (self.stored, self.twin_stored) if self.twin else (self.stored,)
        return tuple(f"{name}.weight" for name in stored)


def vocabulary_of(staged: StagedModel) -> tuple[tuple[VocabularyMatrix, ...], dict[str, str]]:
    """A model's embedding and head; and, by name, why one of them must stay as it is.

    Cost: one read of each from the files, to compare it with what was loaded.
    """
    found: list[VocabularyMatrix] = []
    kept: dict[str, str] = {}
    for name, path, twin in places(staged):
        reason = why_kept(staged, path, twin)
        if reason:
            kept[name] = reason
            continue
        stored = staged.origin.paths[path]
        entry = staged.origin.tensors[f"{stored}.weight"]
        rows, columns = entry.shape
        twin_stored = staged.origin.paths.get(twin, twin)
        found.append(VocabularyMatrix(name, path, stored, (rows, columns), entry.dtype, twin, twin_stored))
    return tuple(found), kept


def names_of(staged: StagedModel) -> tuple[str, ...]:
    """What a model has of NAMES; a tied head is the embedding."""
    return tuple(name for name, _, _ in places(staged))


def places(staged: StagedModel) -> Iterator[tuple[str, str, str]]:
    """Name, module path and the tied head's path of each."""
    model, head = staged.model, staged.layout.head
    table = model.get_input_embeddings()
    path = next((own for own, module in model.named_modules() if module is table), "")
    tied = bool(head) and getattr(table, "weight", None) is model.get_submodule(head).weight
    yield "embedding", path, head if tied else ""
    if head and not tied:
        yield "head", head, ""


def why_kept(staged: StagedModel, path: str, twin: str) -> str:
    """Why a matrix cannot be quantized; empty where it can."""
    model: Any = staged.model
    module = model.get_submodule(path)
    if not isinstance(module, (nn.Embedding, nn.Linear)):
        return f"{path} is a {type(module).__name__}"
    own = {f"{place}.weight" for place in (path, twin) if place}
    shared = [name for name, item in model.named_parameters(remove_duplicate=False) if item is module.weight]
    if others := [name for name in shared if name not in own]:
        return f"{path} is tied to {', '.join(others)}"
    if not is_same(module.weight.detach(), staged.origin, path):
        return f"{path} is not one tensor of the files"
    return ""
