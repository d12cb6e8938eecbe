"""GGUF files beside llama.cpp's standard mixes at the same bytes, from `gguf_<model>.json` of benchmarks/gguf_evidence.py."""

from collections.abc import Mapping
from typing import Any

from tables import markdown

Json = dict[str, Any]
TEXTS = {"text": "WikiText-2, held out", "chat": "conversations in the model's chat template"}
OFF_GRID = (
    "No finer weights of this model were at hand than a file of 4 to 8 bits, whose grid other types hold exactly. The "
    "reference is that file with each weight moved by uniform noise within its step: another, worse model, with no grid."
)
HEAD = ["size of", "bytes", "mix: mean KL", "ours: mean KL", "change", "99.9 %: mix, ours", "same top: mix, ours"]


def gguf_part(files: Mapping[str, Json]) -> list[str]:
    """A table for every model and text that was measured."""
    found = {name: item for name, item in files.items() if name.startswith("gguf_") and "command" in item}
    tables = [line for name, item in found.items() if "sizes" in item for line in model_part(name, item)]
    return ["## GGUF files at the sizes of llama.cpp's mixes", "", *tables] if tables else []


def model_part(name: str, result: Json) -> list[str]:
    """One model."""
    lines = [f"### {result['model']}", ""]
    if "--off-grid" in result["command"]:
        lines += [OFF_GRID, ""]
    for text, called in TEXTS.items():
        sizes = {mix: one for mix, one in result["sizes"].items() if text in one["found"]["mix"]}
        if sizes:
            tokens = next(iter(sizes.values()))["found"]["mix"][text]["tokens"]
            lines += [f"{called} ({tokens:,} tokens; 95 % interval over windows):", ""]
            lines += [*markdown(HEAD, [row(mix, one, text) for mix, one in sizes.items()]), ""]
    return [*lines, f"Made by `{result['command']}` (`docs/results/{name}.json`).", ""]


def row(mix: str, one: Json, text: str) -> list[str]:
    """A mix and our file of its size."""
    theirs, own = one["found"]["mix"][text], one["found"]["ours"][text]
    a, b = theirs["kl_mean"], own["kl_mean"]
    size = f"{one['bytes']['mix']:,}"
    if one["bytes"]["ours"] != one["bytes"]["mix"]:
        size += f" (ours {one['bytes']['ours']:,})"
    return [
        mix,
        size,
        f"{a['mean']:.4f} [{a['low']:.4f}, {a['high']:.4f}]",
        f"**{b['mean']:.4f}** [{b['low']:.4f}, {b['high']:.4f}]",
        f"{b['mean'] / a['mean'] - 1:+.0%}",
        f"{theirs['kl_999']:.2f}, {own['kl_999']:.2f}",
        f"{theirs['same_top']['mean']:.1%}, {own['same_top']['mean']:.1%}",
    ]
