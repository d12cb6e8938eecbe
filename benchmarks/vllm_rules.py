"""How vLLM reads the targets of a compressed-tensors configuration, restated, to be run on ours.

Matching is as in its source (model_executor/layers/quantization/compressed_tensors, commit 008014e); the prefixes and
most of the fused groups are from our notes, and vLLM itself was not run. The configuration's targets are put through
the model's table of prefixes; a linear's scheme is that of the target equal to its name, or, for a linear that vLLM
fuses, of the first of its parts if every part has a target. Parts of different schemes are not refused there: all are
read as the first. Experts are looked up as the linears of the first expert.
"""

from collections.abc import Mapping
from typing import Any

PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w1_w3": ("w1", "w3"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}

PACKED = "pack-quantized"
EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "word_embeddings")


def mapped(name: str) -> str:
    """A module path of transformers as vLLM calls it.

    >>> mapped("model.language_model.layers.0.mlp.down_proj")
    'language_model.model.layers.0.mlp.down_proj'
    """
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def schemes_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Name of the config group by target, after the prefixes were renamed; patterns stay as they are."""
    return {
        (target if target.startswith("re:") else mapped(target)): name
        for name, group in config["config_groups"].items()
        for target in group["targets"]
    }


def fused_names(names: list[str]) -> dict[str, tuple[str, ...]]:
    """What vLLM's linears are called, and the parts that each is made of."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        whole = next((key for key, parts in FUSED.items() if leaf in parts), None)
        if whole is None or not all(f"{parent}.{part}" in names for part in FUSED[whole]):
            found[name] = (name,)
        else:
            found[f"{parent}.{whole}"] = tuple(f"{parent}.{part}" for part in FUSED[whole])
    return found


def outside_blocks(config: Mapping[str, Any], *, tied: bool) -> list[str]:
    """Embedding and head that vLLM would not read as they are written; empty where there is nothing to say.

    By its source at commit 055e47c: a head is a linear, if its name is a target and it is packed. An embedding is
    looked up in packed rows whose words hold whole codes, if the model's class hands on its prefix (open: vllm pull
    45535); a packed embedding that is tied to the head is refused.

    >>> group = lambda bits, **more: {"targets": ["model.embed_tokens"], "weights": {"num_bits": bits}, **more}
    >>> outside_blocks({"config_groups": {"a": group(4)}}, tied=False)
    []
    >>> outside_blocks({"config_groups": {"a": group(4)}}, tied=True)
    ['model.embed_tokens: packed and tied to the head']
    >>> outside_blocks({"config_groups": {"a": group(8, format="int-quantized")}}, tied=False)
    ['model.embed_tokens: int-quantized']
    """
    found: list[str] = []
    for group in config["config_groups"].values():
        for target in group["targets"]:
            if target.rsplit(".", 1)[-1] not in EMBEDDINGS:
                continue
            if group.get("format", PACKED) != PACKED:
                found.append(f"{target}: {group['format']}")
            elif 32 % group["weights"]["num_bits"]:
                found.append(f"{target}: {group['weights']['num_bits']} bits do not fill words of 32")
            elif tied:
                found.append(f"{target}: packed and tied to the head")
    return found


def unread(config: Mapping[str, Any]) -> list[str]:
    """Linears whose width vLLM would not find, or would read wrongly; empty where it finds all of them.

    >>> group = lambda *targets: {"targets": list(targets)}
    >>> unread({"config_groups": {"w2": group("m.q_proj", "m.k_proj"), "w4": group("m.v_proj", "m.o_proj")}})
    ['m.qkv_proj: w2, w2, w4']
    """
    if config["quant_method"] != "compressed-tensors" if "quant_method" in config else False:
        return []
    schemes = schemes_of(config)
    wrong = []
    for name, parts in fused_names(sorted(schemes)).items():
        own = [schemes.get(part, "none") for part in parts]
        if len(set(own)) > 1 or "none" in own:
            wrong.append(f"{name}: {', '.join(own)}")
    blocks: dict[str, set[str]] = {}
    for name, scheme in schemes.items():
        head, expert, _ = name.partition(".experts.")
        if expert:
            blocks.setdefault(f"{head}.experts", set()).add(scheme)
    return wrong + [f"{name}: {', '.join(sorted(own))}" for name, own in blocks.items() if len(own) > 1]
