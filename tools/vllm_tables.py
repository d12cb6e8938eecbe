"""What vLLM made of folders that were written here, in docs/models.md."""

from collections.abc import Mapping
from typing import Any

from tables import markdown

Json = dict[str, Any]
HEAD = (
    "folder", "widths (modules)", "computed by", "perplexity in vLLM", "in transformers",
    "log-probability apart, mean (most)", "same top token",
)  # fmt: skip


def vllm_runs(files: Mapping[str, Json]) -> list[str]:
    """The table, and the commands that made it."""
    saved = files.get("vllm_cpu")
    if not saved:
        return ["*not run*"]
    rows = [cells(row) for run in saved["runs"] for row in run["rows"]]
    made = [f"Made by `{word}`.  " for word in dict.fromkeys(word for run in saved["runs"] for word in run["commands"])]
    return [*markdown(HEAD, rows), "", saved["conditions"], "", *made]


def cells(row: Json) -> list[str]:
    """A folder's figures; of one that vLLM does not read, its words."""
    if "refused" in row:
        return [row["folder"], "", "", f"not read: {row['refused']}", "", "", ""]
    widths = ", ".join(f"{name} ({count})" for name, count in row["widths"].items()) or "full precision"
    kernels = "; ".join(f"{kernel}: {', '.join(kinds)}" for kernel, kinds in sorted(row["kernels"].items()))
    return [
        row["folder"],
        widths,
        kernels or "plain linears",
        f"{row['perplexity']:.2f}",
        f"{row['transformers_perplexity']:.2f}",
        f"{row['mean_apart']:.3f} ({row['most_apart']:.2f})",
        f"{row['same_top']:.1%}",
    ]
