"""Draws the cost-quality frontier from a saved evaluation, and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATIC = ("direct", "rag", "cot", "rag+cot")
STYLES = {"router": ("#0b6e4f", "o", "router"), "oracle": ("#888888", ".", "oracle (hindsight)")}


def draw_frontier(evaluation: Mapping[str, Any], path: Path) -> None:
    """Quality against tokens, and against latency where it was recorded, as one PNG.

    Args:
        evaluation: the object in evaluation.json.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = evaluation["frontier"]
    timed = all(point["latency_ms"] is not None for point in points["router"])
    panels = [("tokens", "mean tokens per answer, probes counted")]
    panels += [("latency_ms", "mean latency per answer, ms, probes counted")] if timed else []
    figure = Figure(figsize=(6.2 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (key, label) in enumerate(panels, start=1):
        _panel(figure.add_subplot(1, len(panels), number), points, key, label)
    families = len(evaluation["families"])
    figure.suptitle(
        f"Cost and quality of {evaluation['questions']} questions, {families} dataset{'s' * (families > 1)}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _panel(axes: Any, points: Mapping[str, Any], key: str, label: str) -> None:
    """One panel: a line over the weights of this cost alone, and the static strategies as points."""
    other = "latency_weight" if key == "tokens" else "token_weight"
    for name, (colour, marker, shown) in STYLES.items():
        line = sorted((p[key], p["quality"]) for p in points[name] if p[other] == 0)
        axes.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=5, label=shown)
    statics = {name: points[name][0] for name in STATIC if name in points}
    middle = max(point[key] for point in statics.values()) / 2
    for name, point in statics.items():
        place = (point[key], point["quality"])
        side, shift = ("left", (7, -11)) if point[key] <= middle else ("right", (-7, -13))
        axes.plot(*place, "s", color="#c8553d", markersize=7)
        axes.annotate(name, place, textcoords="offset points", xytext=shift, ha=side, fontsize=9)
    axes.plot([], [], "s", color="#c8553d", label="always one strategy")
    axes.set_xlabel(label)
    axes.set_ylabel("mean quality")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
