"""llama.cpp's standard mixes: which type `llama-quantize` gives each matrix for a name such as Q4_K_M.

A mix is the plan to beat, so the search measures the one that fits the budget too.
Source: `llama_tensor_get_type_impl` of llama.cpp's src/llama-quant.cpp, for dense models with an importance matrix.
"""

from collections.abc import Mapping

from apportion.bits.game import Assignment
from apportion.bits.gguf.ladders import Ladders
from apportion.formats.ggml import resolve

MIXES = {
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
}  # fmt: skip
"""The type that most matrices of a mix have."""

OUTPUT = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}  # of attention


def mix_types(mix: str, columns: Mapping[str, int], heads_per_kv: int) -> dict[str, str]:
    """Type of every matrix in a standard mix, as its columns allow.

    Args:
        mix: a key of `MIXES`.
        columns: of every matrix, by GGUF name.
        heads_per_kv: query heads that share a key head.

    >>> mix_types("Q3_K_M", {"token_embd.weight": 256, "blk.0.attn_v.weight": 256, "blk.0.ffn_up.weight": 64}, 1)
    {'token_embd.weight': 'Q6_K', 'blk.0.attn_v.weight': 'Q5_K', 'blk.0.ffn_up.weight': 'IQ4_NL'}
    """
    base, found = MIXES[mix], {}
    blocks = sum(name.endswith("attn_v.weight") for name in columns)
    head = "output.weight" if "output.weight" in columns else "token_embd.weight"
    for name, width in columns.items():
        *_, block, kind, _ = ("", *name.split("."))
        asked = base
        if name == head:
            asked = "Q6_K"
        elif kind == "attn_v":
            asked = of_values(mix, int(block), blocks, heads_per_kv)
        elif kind == "ffn_down":
            asked = of_downs(mix, int(block), blocks)
        elif kind == "attn_output":
            asked = OUTPUT.get(mix, base)
        found[name] = resolve(asked, width)
    return found


def more_bits(block: int, blocks: int) -> bool:
    """Whether llama.cpp takes a block for one of the sensitive ones: the first and last eighth, and each third.

    >>> [block for block in range(16) if more_bits(block, 16)]
    [0, 1, 4, 7, 10, 13, 14, 15]
    """
    return block < blocks // 8 or block >= 7 * blocks // 8 or (block - blocks // 8) % 3 == 2


def of_values(mix: str, block: int, blocks: int, heads_per_kv: int) -> str:
    """Type asked for a block's value projection."""
    if mix == "Q2_K":
        return "Q4_K" if heads_per_kv >= 4 else "Q3_K"
    if mix == "Q3_K_M":
        return "Q5_K" if block < 2 else "Q4_K"
    if mix in ("Q4_K_M", "Q5_K_M") and more_bits(block, blocks):
        return "Q6_K"
    return "Q5_K" if mix == "Q3_K_L" or (mix == "Q4_K_S" and block < 4) else MIXES[mix]


def of_downs(mix: str, block: int, blocks: int) -> str:
    """Type asked for a block's down projection."""
    if mix == "Q3_K_M":
        return "Q5_K" if block < blocks // 16 else "Q4_K"
    if mix in ("Q4_K_M", "Q5_K_M") and more_bits(block, blocks):
        return "Q6_K"
    if mix == "Q4_K_S" and block < blocks // 8:
        return "Q5_K"
    return {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(mix, MIXES[mix])


def assignment_of(ladders: Ladders, types: Mapping[str, str]) -> Assignment | None:
    """Types by name as a plan; None where a ladder does not have one of them."""
    if any(types[name] not in own for name, own in zip(ladders.names, ladders.types, strict=True)):
        return None
    return tuple(own.index(types[name]) for name, own in zip(ladders.names, ladders.types, strict=True))


def fitting_mix(
    ladders: Ladders, columns: Mapping[str, int], heads_per_kv: int, budget_bytes: int
) -> tuple[str, Assignment] | None:
    """The largest standard mix within a budget, among those whose types the ladders have.

    Args:
        columns: of the matrices, by GGUF name. budget_bytes: for the players' tensors.
    """
    found: tuple[int, str, Assignment] | None = None
    for mix in MIXES:
        plan = assignment_of(ladders, mix_types(mix, columns, heads_per_kv))
        size = 0 if plan is None else ladders.costs.spent(plan)
        if plan is not None and size <= budget_bytes and (found is None or size > found[0]):
            found = (size, mix, plan)
    return None if found is None else found[1:]
