"""Plots of a quantization as PNG bytes, from values given to them."""

import numpy as np

from apportion.bits.plan import Plan, Sensitivity
from apportion.core.figures import canvas, png

COLOURS = ("#c2410c", "#d9a406", "#7a8b2f", "#1f7a4d", "#2563a8")  # from the lowest width to the highest


def draw_frontier(frontier: list[Plan], plan: Plan, nll_fp: float, loss: str) -> bytes:
    """Loss (and what it is called) against average bits: predicted and measured, with the plan that was kept."""
    figure, axes = canvas(7, 4.2)
    bits = [item.avg_bits for item in frontier]
    axes.plot(bits, [item.predicted_nll for item in frontier], "--", color="#888888", label="predicted")
    axes.plot(bits, [item.measured_nll for item in frontier], "o-", color="#2563a8", label="measured")
    axes.plot([plan.avg_bits], [plan.measured_nll], "D", color="#c2410c", markersize=8, label="this plan")
    axes.axhline(nll_fp, color="#1f7a4d", linewidth=1, label="full precision")
    axes.set_xlabel("average bits per quantized weight")
    axes.set_ylabel(f"{loss[0].lower()}{loss[1:]},\ncalibration text, nats per token")
    axes.legend(frameon=False)
    return png(figure)


def draw_bits(plan: Plan, sensitivity: Sensitivity) -> bytes:
    """Width of every player over what its lowest width costs."""
    players, widths = plan.costs.players, plan.costs.widths
    count = len(players)
    figure, axes = canvas(max(6.0, min(16.0, 0.16 * count + 3)), 3.6)
    lowest = sensitivity.linear[sensitivity.choices[:, 1] == 0]
    for column, width in enumerate(widths):
        places = [i for i, own in enumerate(plan.assignment) if own == column]
        axes.bar(
            places, lowest[places], color=COLOURS[column * (len(COLOURS) - 1) // plan.costs.high], label=width.name
        )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xlabel("player, in model order")
    axes.set_ylabel(f"cost of {widths[0].name}, nats")
    if count <= 32:
        axes.set_xticks(range(count), [str(player.block) for player in players])
        axes.set_xlabel("block")
    axes.legend(frameon=False, ncols=len(widths))
    return png(figure)


def draw_interactions(sensitivity: Sensitivity) -> bytes:
    """Heat map of the pair costs of the lowest width."""
    figure, axes = canvas(5.6, 4.8)
    lowest = np.flatnonzero(sensitivity.choices[:, 1] == 0)
    pair = sensitivity.pair[np.ix_(lowest, lowest)]
    limit = float(np.abs(pair).max()) or 1.0
    image = axes.imshow(pair, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_xlabel("player")
    axes.set_ylabel("player")
    unit = "nats²" if sensitivity.method == "coopq" else "nats"
    figure.colorbar(image, ax=axes, label=f"pair cost, {unit}")
    return png(figure)
