"""Where a causal LM's blocks are, found by structure and not by names. Knows modules, not forward passes."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from apportion.core.errors import ModelStructureError

SMALLEST_LINEAR_SHARE = 0.5
FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""Linears of one parent that servers run as one, and that need equal widths there (vLLM's packed modules)."""
_EXPERT = re.compile(r"^(?P<expert>(?P<experts>(.*\.)?experts)\.\d+)\.")
ROUTERS = ("gate", "router", "shared_expert_gate", "shared_expert_gating")


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of a model: `prefix` is their module path, `linears[i]` the linear paths inside block i.

    Attributes:
        kept: linears inside the blocks that are never quantized, by full path, with the reason.
        head: module path of the output head; empty where there is none.
    """

    prefix: str
    linears: tuple[tuple[str, ...], ...]
    kept: tuple[tuple[str, str], ...] = ()
    head: str = ""

    @property
    def block_count(self) -> int:
        return len(self.linears)

    def path(self, block: int, linear: str) -> str:
        """Full module path of a linear."""
        return f"{self.prefix}.{block}.{linear}"

    def paths(self) -> list[str]:
        """Full module paths of all linears, in model order."""
        return [self.path(block, linear) for block, linears in enumerate(self.linears) for linear in linears]

    def without(self, paths: Collection[str], reason: str) -> "Layout":
        """The same blocks with some linears never quantized."""
        left = tuple(
            tuple(name for name in names if self.path(block, name) not in paths)
            for block, names in enumerate(self.linears)
        )
        dropped = tuple((path, reason) for path in self.paths() if path in paths)
        return replace(self, linears=left, kept=(*self.kept, *dropped))


def find_layout(model: Any) -> Layout:
    """Find the one list of decoder blocks, and the linears in each.

    A list of blocks is a ModuleList of `num_hidden_layers` modules inside the text part of the model. Blocks may be of
    several kinds (attention, state space, convolution); routers of experts are left alone.

    Raises:
        ModelStructureError: no such list, or several.
    """
    prefix, blocks = find_blocks(model)
    routers = {path: "router" for index, block in enumerate(blocks) for path in routers_of(f"{prefix}.{index}", block)}
    found = Layout(prefix, tuple(tuple(linear_names(block)) for block in blocks), head=head_of(model))
    return found.without(routers, "router")


def require_linears(prefix: str, blocks: Iterable[nn.Module]) -> None:
    """Refuse to quantize blocks whose weights mostly lie outside of linears; they can be run.

    Raises:
        ModelStructureError: saying where they lie.
    """
    reasons = [reason for index, block in enumerate(blocks) if (reason := why_unfit(index, block))]
    if reasons:
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise ModelStructureError(f"{prefix}: {reasons[0]}{more}", "this structure is not supported")


def find_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its module path.

    Raises:
        ModelStructureError: there is none, or several.
    """
    wanted = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    text = text_part(model)
    inside = [(name, module) for name, module in lists if len(module) == wanted and name.startswith(text)]
    # a list within a block (the experts of a model with as many experts as blocks) is none of its own
    outer = [(name, module) for name, module in inside if not any(name.startswith(f"{o}.") for o, _ in inside)]
    if len(outer) != 1:
        seen = ", ".join(f"{name} ({len(module)})" for name, module in lists) or "none"
        raise ModelStructureError(
            f"the model must hold exactly one list of num_hidden_layers = {wanted} blocks; lists found: {seen}",
            "use a decoder-only causal LM such as Llama, Gemma-2 or Qwen-3",
        )
    return outer[0]


def text_part(model: Any) -> str:
    """Module path of the text tower inside a vision-language model; empty where the model is text alone."""
    find = getattr(model, "get_decoder", None)
    tower = find() if callable(find) else None
    return next((name for name, module in model.named_modules() if module is tower), "")


def head_of(model: Any) -> str:
    """Module path of the output head; empty where there is none."""
    ask = getattr(model, "get_output_embeddings", None)
    module = ask() if callable(ask) else None
    return next((name for name, item in model.named_modules() if item is module), "")


def head_weights(model: Any, head: str) -> int:
    """Weights of the output head, by its module path; 0 where there is none."""
    return int(model.get_parameter(f"{head}.weight").numel()) if head else 0


def linear_names(block: nn.Module) -> list[str]:
    """Paths of a block's linears, in the order in which the modules are defined."""
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def routers_of(prefix: str, block: nn.Module) -> list[str]:
    """Linears that choose among experts: small, and wrong choices cost more than they save."""
    return [f"{prefix}.{name}" for name in linear_names(block) if name.rsplit(".", 1)[-1] in ROUTERS]


def why_unfit(index: int, block: nn.Module) -> str:
    """Why a block cannot be a player; empty when it can."""
    total = sum(parameter.numel() for parameter in block.parameters())
    linear = sum(module.weight.numel() for module in block.modules() if isinstance(module, nn.Linear))
    if linear >= SMALLEST_LINEAR_SHARE * total:
        return ""
    name, largest = max(block.named_parameters(), key=lambda item: item[1].numel())
    kind = type(block.get_submodule(name.rpartition(".")[0])).__name__
    if largest.dim() == 3:
        return (
            f"block {index} keeps its experts in tensors of three dimensions ({name} of {kind}), in the file too, and "
            "no layout is known in which servers load such experts quantized"
        )
    return (
        f"block {index} has only {linear:,} of its {total:,} weights in linear modules "
        f"({name} of {kind} alone has {largest.numel():,})"
    )


def experts_of(linear: str) -> str:
    """The path of the experts that a linear belongs to; empty for any other, experts that all tokens share among them.

    >>> experts_of("mlp.experts.3.up_proj"), experts_of("mlp.shared_experts.up_proj")
    ('mlp.experts', '')
    """
    found = _EXPERT.match(linear)
    return found["experts"] if found else ""


def expert_of(linear: str) -> str:
    """The path of the one expert that a linear belongs to; empty for any other.

    >>> expert_of("mlp.experts.3.up_proj")
    'mlp.experts.3'
    """
    found = _EXPERT.match(linear)
    return found["expert"] if found else ""


def fused(linears: Collection[str], *, per_expert: bool = False) -> list[tuple[str, ...]]:
    """Group linears that servers fuse, and all experts of one parent; the others stay alone; order by first member.

    Args:
        per_expert: group the linears of each expert alone.

    >>> fused(("a.q_proj", "a.k_proj", "a.v_proj", "a.o_proj", "m.experts.0.w1", "m.experts.1.w2"))
    [('a.q_proj', 'a.k_proj', 'a.v_proj'), ('a.o_proj',), ('m.experts.0.w1', 'm.experts.1.w2')]
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        family = next((index for index, names in enumerate(FUSED) if leaf in names), None)
        if block := (expert_of if per_expert else experts_of)(name):
            key = (block, -2)
        elif family is not None:
            key = (parent, family)
        else:
            key = (name, -1)
        groups.setdefault(key, []).append(name)
    return [tuple(group) for group in groups.values()]
