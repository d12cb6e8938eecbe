"""Experts held as three-dimensional parameters -> one linear for each, under the names that the file has.

Classes of transformers keep the experts of a block as `gate_up_proj` [experts, 2 x inner, hidden] and `down_proj`
[experts, hidden, inner]; files keep a matrix for each expert, and so do servers. Here the class's module is replaced
by linears that share its memory, so that everything that rounds, measures or writes a linear does so for an expert.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from apportion.models.names import Names
from apportion.models.source import Source

ROLES = ("gate", "up", "down")
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


def take_apart(model: Any, source: Source, names: Names) -> dict[str, str]:
    """Replace fused experts whose file has a matrix for each by linears.

    Returns:
        The stored path of every new linear, by module path; experts that the file holds fused too stay as they are.
    """
    found: dict[str, str] = {}
    for path, module in [(path, module) for path, module in model.named_modules() if is_fused(module)]:
        stored = [*names.merged.get(f"{path}.gate_up_proj", ()), *names.merged.get(f"{path}.down_proj", ())]
        leaves = leaves_of(module, source, stored)
        if leaves is None:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LinearExperts(module, leaves))
        for name in stored:
            match = _EXPERT.search(name)
            assert match is not None, "names were matched when the leaves were found"
            found[f"{path}.{match['expert']}.{match['leaf']}"] = name.removesuffix(".weight")
    return found


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
