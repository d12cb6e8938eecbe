"""Experts held as three-dimensional parameters -> one linear for each, under the names that the file has.

Classes of transformers keep the experts of a block as `gate_up_proj` [experts, 2 x inner, hidden] and `down_proj`
[experts, hidden, inner]; files keep a matrix for each expert, and so do servers. Here the class's module is replaced
by linears that share its memory, so that everything that rounds, measures or writes a linear does so for an expert.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from apportion.formats.safetensors import Entry
from apportion.models.names import Names, names_of
from apportion.models.source import Source

LEAVES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
"""What servers call the linears of an expert, by role, where the file has no names for them."""

ROLES = tuple(LEAVES)
_EXPERT = re.compile(r"experts\.(?P<expert>\d+)\.(?P<leaf>\w+)\.weight$")


class LinearExperts(nn.ModuleList):
    """The experts of a block, each with linears of its own; what the fused module computes.

    Args:
        fused: the module that is replaced; its gate (activation, limits) stays in use.
        leaves: what the file calls the linears, by role: gate, up, down.
    """

    def __init__(self, fused: Any, leaves: Mapping[str, str]) -> None:
        super().__init__(expert_of(fused, index, leaves) for index in range(fused.num_experts))
        self.leaves = dict(leaves)
        self.gate = [fused._apply_gate]  # in a list: as an attribute the fused parameters would be kept

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        top_k_index: Int[Tensor, "tokens chosen"],
        top_k_weights: Float[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens hidden"]:
        """The weighted sum of what each token's experts give."""
        total = torch.zeros_like(hidden_states)
        for index in top_k_index.unique().tolist():
            if index >= len(self):  # a place that a mask marks as no expert's
                continue
            token, place = torch.where(top_k_index == index)
            expert, state = self[index], hidden_states[token]
            both = [getattr(expert, self.leaves[role])(state) for role in ("gate", "up")]
            out = getattr(expert, self.leaves["down"])(self.gate[0](torch.cat(both, dim=-1)))
            total.index_add_(0, token, (out * top_k_weights[token, place, None]).to(total.dtype))
        return total


def expert_of(fused: Any, index: int, leaves: Mapping[str, str]) -> nn.Module:
    """One expert's linears over slices of the fused parameters."""
    found = nn.Module()
    for role, weight in slices_of(fused, index).items():
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        found.add_module(leaves[role], linear)
    return found


def slices_of(fused: Any, index: int) -> dict[str, Tensor]:
    """One expert's matrices by role, without a copy."""
    gate, up = fused.gate_up_proj.detach()[index].chunk(2, dim=0)
    return {"gate": gate, "up": up, "down": fused.down_proj.detach()[index]}


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds experts in the layout that can be taken apart: gate above up, no biases."""
    plain = not any(getattr(module, key, False) for key in ("has_bias", "is_transposed", "has_post_expert_norm"))
    layout = getattr(module, "has_gate", False) and getattr(module, "is_concatenated", False)
    return bool(plain and layout and all(hasattr(module, key) for key in ("gate_up_proj", "down_proj", "_apply_gate")))


def take_apart(model: Any, source: Source, names: Names) -> tuple[dict[str, str], Source]:
    """Replace fused experts by linears, where servers know a layout with a matrix for each.

    Returns:
        The stored path of every new linear, by module path; and the source, which shows experts that its files hold
        fused as the matrices that they are made of.
    """
    found: dict[str, str] = {}
    for path, module in [(path, module) for path, module in model.named_modules() if is_fused(module)]:
        stored = [*names.merged.get(f"{path}.gate_up_proj", ()), *names.merged.get(f"{path}.down_proj", ())]
        leaves = leaves_of(module, source, stored)
        if leaves is None and (prefix := whole_in_file(model, path, module, names)):
            source, stored, leaves = parted(source, prefix, module), list(virtual(prefix, module.num_experts)), LEAVES
        if leaves is None:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LinearExperts(module, leaves))
        for name in stored:
            match = _EXPERT.search(name)
            assert match is not None, "names were matched when the leaves were found"
            found[f"{path}.{match['expert']}.{match['leaf']}"] = name.removesuffix(".weight")
    return found, source


def whole_in_file(model: Any, path: str, fused: Any, names: Names) -> str:
    """The stored path of experts that the file holds fused as the class does; empty where it does not, or where the
    class would not find them again one by one."""
    stored = names.single.get(f"{path}.gate_up_proj", "")
    prefix = stored.removesuffix(".gate_up_proj")
    if not stored.endswith(".gate_up_proj") or names.single.get(f"{path}.down_proj") != f"{prefix}.down_proj":
        return ""
    back = names_of(model, virtual(prefix, fused.num_experts)).merged
    return prefix if {f"{path}.gate_up_proj", f"{path}.down_proj"} <= set(back) else ""


def virtual(prefix: str, experts: int) -> list[str]:
    """Names of matrices that a file would have for each expert."""
    return [f"{prefix}.{index}.{leaf}.weight" for index in range(experts) for leaf in LEAVES.values()]


def parted(source: Source, prefix: str, fused: Any) -> Source:
    """A folder as if it held a matrix for each expert, cut from the tensors that it does hold."""
    tensors, files = dict(source.tensors), dict(source.files)
    whole = {"down": f"{prefix}.down_proj", "gate": f"{prefix}.gate_up_proj", "up": f"{prefix}.gate_up_proj"}
    dtypes = {role: tensors[name].dtype for role, name in whole.items()}
    held = {role: files[name] for role, name in whole.items()}
    places = {}
    for name in set(whole.values()):
        del tensors[name], files[name]
    for name in virtual(prefix, fused.num_experts):
        match = _EXPERT.search(name)
        assert match is not None, "these names are made to match"
        role = next(role for role, leaf in LEAVES.items() if leaf == match["leaf"])
        places[name] = (whole[role], int(match["expert"]), role)
        tensors[name] = Entry(dtypes[role], tuple(slices_of(fused, 0)[role].shape))
        files[name] = held[role]

    def tensor(name: str) -> Tensor:
        if name not in places:
            return source.tensor(name)
        stored, index, role = places[name]
        matrix = source.part(stored, index)
        return {"down": matrix, "gate": matrix[: len(matrix) // 2], "up": matrix[len(matrix) // 2 :]}[role].contiguous()

    return replace(source, tensors=tensors, files=files, decode=tensor)


def leaves_of(fused: Any, source: Source, stored: list[str]) -> dict[str, str] | None:
    """What the file calls gate, up and down, found by the first expert's bytes; None where it is another layout."""
    parsed = [_EXPERT.search(name) for name in stored]
    if len(stored) != len(ROLES) * fused.num_experts or any(match is None for match in parsed):
        return None
    first = {
        match["leaf"]: name for match, name in zip(parsed, stored, strict=True) if match and match["expert"] == "0"
    }
    found: dict[str, str] = {}
    for role, weight in slices_of(fused, 0).items():
        for leaf, name in first.items():
            tensor = source.tensor(name)
            if tensor.shape == weight.shape and torch.equal(tensor.to(weight), weight) and leaf not in found.values():
                found[role] = leaf
                break
    return found if len(found) == len(ROLES) else None
