"""Where a causal LM's blocks are, found by structure and not by names. Knows modules, not forward passes."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from apportion.core.errors import ModelStructureError

SMALLEST_LINEAR_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of a model: `prefix` is their module path, `linears[i]` the linear paths inside block i."""

    prefix: str
    linears: tuple[tuple[str, ...], ...]

    @property
    def block_count(self) -> int:
        return len(self.linears)

    def path(self, block: int, linear: str) -> str:
        """Full module path of a linear."""
        return f"{self.prefix}.{block}.{linear}"

    def paths(self) -> list[str]:
        """Full module paths of all linears, in model order."""
        return [self.path(block, linear) for block, linears in enumerate(self.linears) for linear in linears]


def find_layout(model: Any) -> Layout:
    """Find the one list of decoder blocks.

    A list of blocks is a ModuleList of `num_hidden_layers` modules of one class whose parameters lie
    (at least 90 %) in `nn.Linear` children.

    Raises:
        ModelStructureError: no such list, several, or blocks whose weights are not linears (a mixture of
            experts with fused weights, for example); the reason is said.
    """
    text_config = model.config.get_text_config()
    wanted = getattr(text_config, "num_hidden_layers", None)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    candidates = [(name, module) for name, module in lists if len(module) == wanted]
    if len(candidates) != 1:
        seen = ", ".join(f"{name} ({len(module)})" for name, module in lists) or "none"
        raise ModelStructureError(
            f"the model must hold exactly one list of num_hidden_layers = {wanted} blocks; lists found: {seen}",
            "use a decoder-only causal LM such as Llama, Gemma-2 or Qwen-3",
        )
    prefix, blocks = candidates[0]
    reasons = [reason for index, block in enumerate(blocks) if (reason := why_unfit(index, block, blocks[0]))]
    if reasons:
        raise ModelStructureError(f"{prefix}: " + "; ".join(reasons[:8]), "this structure is not supported")
    return Layout(prefix, tuple(tuple(linear_names(block)) for block in blocks))


def linear_names(block: nn.Module) -> list[str]:
    """Paths of a block's linears, in the order in which the modules are defined."""
    return [name for name, module in block.named_modules() if type(module) is nn.Linear]


def why_unfit(index: int, block: nn.Module, first: nn.Module) -> str:
    """Why a block cannot be a player; empty when it can."""
    if type(block) is not type(first):
        return f"block {index} is a {type(block).__name__}, block 0 a {type(first).__name__}"
    total = sum(parameter.numel() for parameter in block.parameters())
    linear = sum(module.weight.numel() for module in block.modules() if type(module) is nn.Linear)
    if linear < SMALLEST_LINEAR_SHARE * total:
        return f"block {index} has only {linear:,} of its {total:,} weights in linear modules"
    return ""
