"""Whole files in docs/models.md: the same size with embedding and head as players, and with both at 16 bits."""

from collections.abc import Mapping
from typing import Any

from tables import markdown

Json = dict[str, Any]
WAYS = {
    "players": "players",
    "4 bits too": "players, `--embedding-bits 4,8`",
    "kept": "`--keep embedding,head`",
}
HEAD = (
    "model", "file", "embedding and head", "their bits", "blocks", "perplexity", "mean KL, nats", "same top token",
    "stock transformers", "vLLM's rules",
)  # fmt: skip


def whole_files(files: Mapping[str, Json]) -> list[str]:
    """The table, with the command of every model."""
    saved = files.get("whole_files")
    if not saved:
        return ["*not run*"]
    rows = [
        cells(name, row)
        for name, own in saved["models"].items()
        for row in sorted(own, key=lambda row: (-row["share"], list(WAYS).index(row["way"])))
    ]
    return [*markdown(HEAD, rows), "", *(f"Made by `{one}`.  " for one in dict.fromkeys(saved["commands"].values()))]


def cells(name: str, row: Json) -> list[str]:
    """A row; of a size that cannot be had, why."""
    size = f"{row['share']:.0%} of {row['original'] / 1e6:.0f} MB"
    if "impossible" in row:
        return [name, size, WAYS[row["way"]], f"impossible: {row['impossible']}", *[""] * 6]
    held, stock = row["held_out"], row["loads_in"]["transformers"]
    widths = ", ".join(f"{matrix} {width}" for matrix, width in row["vocabulary"]["widths"].items())
    return [
        name,
        f"{size}: {row['bytes'] / 1e6:.1f} MB",
        WAYS[row["way"]],
        widths or "16 bits",
        f"{row['blocks_bits']:.2f} bits",
        f"{held['perplexity']:.2f} (full precision {held['reference_perplexity']:.2f})",
        f"{held['kl_mean']['mean']:.4f}",
        f"{held['same_top']['mean']:.1%}",
        "no" if stock else "loads",
        f"no: {row['vllm'][0]}" if row["vllm"] else "reads it",
    ]
