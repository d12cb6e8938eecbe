"""A comparison as a table and a plot, from the JSON that the command writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from apportion.core.artifact import Json
from apportion.core.figures import canvas, png
from apportion.models.text import told

HEAD = (
    "candidate", "bytes", "mean KL", "median", "99 %", "99.9 %", "same top", "change of right token", "perplexity"
)  # fmt: skip


def tables(result: Json) -> list[str]:
    """Markdown: one table for each text."""
    lines: list[str] = []
    for name, text in result["texts"].items():
        lines += [
            f"{name}: {text['tokens']:,} tokens of {text['source']} in windows of {text['window_tokens']}"
            f"{told(text.get('bos'))}; reference perplexity {text['reference_perplexity']:.3f}",
            "",
            "| " + " | ".join(HEAD) + " |",
            "|---" * len(HEAD) + "|",
            *(row(candidate, candidate["texts"][name]) for candidate in result["candidates"]),
            "",
        ]
    return lines


def row(candidate: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A candidate's line: KL in nats per token with its interval, shares in percent."""
    kl, same = found["kl_mean"], found["same_top"]
    cells = (
        candidate["name"],
        f"{candidate['bytes']:,}",
        f"{kl['mean']:.5f} [{kl['low']:.5f}, {kl['high']:.5f}]",
        f"{found['kl_median']:.5f}",
        f"{found['kl_99']:.4f}",
        f"{found['kl_999']:.4f}",
        f"{same['mean']:.2%}",
        f"{found['change_rms']['mean']:.2%}",
        f"{found['perplexity']:.3f}",
    )
    return "| " + " | ".join(cells) + " |"


def draw(candidates: Sequence[Mapping[str, Any]], text: str) -> bytes:
    """PNG: size of the file against mean KL on one text, with intervals."""
    figure, axes = canvas(6.4, 4.2)
    for candidate in candidates:
        kl = candidate["texts"][text]["kl_mean"]
        size, mean = candidate["bytes"] / 1e6, kl["mean"]
        reach = [[max(mean - kl["low"], 0.0)], [max(kl["high"] - mean, 0.0)]]
        axes.errorbar([size], [mean], yerr=reach, fmt="o", color="#2563a8", capsize=2)
        axes.annotate(candidate["name"], (size, mean), xytext=(5, 4), textcoords="offset points", fontsize=8)
    if all(candidate["texts"][text]["kl_mean"]["mean"] > 0 for candidate in candidates):
        axes.set_yscale("log")
    axes.set_xlabel("weights, MB")
    axes.set_ylabel(f"mean KL on {text}, nats per token")
    return png(figure)
