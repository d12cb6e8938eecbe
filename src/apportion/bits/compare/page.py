"""A comparison as a Markdown table and a plot, from its saved numbers alone."""

from pathlib import Path

from apportion.core.artifact import Json, write_bytes
from apportion.core.figures import canvas, png

FILES = ("table.md", "compare.png")
STYLES = ("-", "--", ":", "-.")


def write_page(folder: Path, result: Json) -> list[str]:
    """Write `table.md` and `compare.png`; returns their names."""
    write_bytes(folder / FILES[0], page(result).encode())
    write_bytes(folder / FILES[1], draw_comparison(result))
    return list(FILES)


def page(result: Json) -> str:
    """The Markdown page."""
    settings = result["settings"]
    uniform = ", ".join(f"all {name} {value:.2f}" for name, value in result["perplexity_uniform"].items())
    applied = result["apply_rounding"]
    lines = [
        f"# {result['model']}, rounding {result['rounding']}"
        + (f", evaluated with {applied}" if applied != result["rounding"] else ""),
        "",
        f"Perplexity on the first {result['text_windows']} windows of {result['window_tokens']} tokens of "
        f"{result['text']}: full precision {result['perplexity_fp']:.2f}, {uniform}. Values measured on "
        f"{result['calibration_windows']} windows of {settings['calibration_source']}: "
        f"{result['samples']['coalitions']} coalitions of {result['permutations']} permutations; "
        f"{settings['players']} as players, computed in {settings['dtype']}.",
        "",
        *table(result),
        "",
        "Bold: best (the exhaustive optimum looks at every plan and does not compete). ≈: the 95 % bootstrap interval "
        "of the paired difference to the best, over windows, holds zero. Excess: mean over the "
        "curve's budgets of the log-perplexity above all-highest, nats. Regret: mean over the same budgets "
        f"of the calibration {loss_name(settings)} above the exhaustive optimum's, nats. Evaluations: "
        "distinct coalitions that the method asked for beyond the shared ones, also where another method had asked for "
        "them before.",
        "",
        "![comparison](compare.png)",
        "",
    ]
    return "\n".join(lines)


def loss_name(settings: Json) -> str:
    """What plans were chosen by."""
    return "cross-entropy to full precision" if settings.get("labels") == "predictions" else "NLL"


def table(result: Json) -> list[str]:
    """One row per method: perplexity at every budget, excess, regret, evaluations."""
    grid = [f"{bits:g}" for bits in result["avg_bits"]]
    head = "| method | " + " | ".join(grid) + " | excess | regret | evaluations |"
    rows = [head, "|---" * (len(grid) + 4) + "|"]
    for name, row in result["methods"].items():
        cells = [marked(f"{cell['perplexity']:.2f}", cell) for cell in row["budgets"]]
        excess = marked(f"{row['excess']['mean']:.3f}", row["excess"]) if row["excess"] else "not run"
        regret = f"{row['regret']['mean']:.4f}" if row["regret"] else "not run"
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {excess} | {regret} | {row['evaluations']} |")
    return rows


def marked(text: str, cell: Json) -> str:
    """Bold for the best, ≈ for a tie with it."""
    if cell["best"]:
        return f"**{text}**"
    return f"{text} ≈" if cell["tie"] else text


def draw_comparison(result: Json) -> bytes:
    """Log-perplexity above full precision against average bits, one line per method."""
    import numpy as np

    figure, axes = canvas(8.2, 4.8)
    fp = np.log(result["perplexity_fp"])
    for index, (name, row) in enumerate(result["methods"].items()):
        bits = [cell["avg_bits"] for cell in row["budgets"]]
        loss = np.asarray([cell["nll"] for cell in row["budgets"]]) - fp
        black = name == "optimum"
        axes.plot(
            bits, loss, STYLES[index % 4], marker="o", markersize=4, label=name,
            color="black" if black else f"C{index % 10}", linewidth=1 if black else 1.5,
        )  # fmt: skip
    for name, value in result["perplexity_uniform"].items():
        bits = result["bits_uniform"][name]
        axes.plot([bits], [np.log(value) - fp], "s", color="#888888", markersize=6)
        axes.annotate(
            f"all {name}", (bits, np.log(value) - fp), textcoords="offset points", xytext=(6, 4),
            fontsize=8, color="#555555",
        )  # fmt: skip
    lowest = min(cell["nll"] for row in result["methods"].values() for cell in row["budgets"]) - fp
    if min(lowest, *(np.log(value) - fp for value in result["perplexity_uniform"].values())) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("average bits per quantized weight")
    axes.set_ylabel("log-perplexity above full precision, nats")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png(figure)
