"""The tables of benchmarks/best.py: `auto` with all its freedom, and rivals written with the same rounding."""

from collections.abc import Mapping
from typing import Any

from saved_widths import labels
from tables import markdown

Json = dict[str, Any]
NOT_RUN = "*not run*"
UNSPENT = 0.05  # average bits
TEXT = (
    "Perplexity of the plans kept, chosen on calibration text alone, with 95 % bootstrap intervals over windows; uniform "
    "plans on the same weights. Where written weights differ from those that were searched with (gptq works in sequence; "
    "tuned scales), plans are judged as written. `tuned`: the scales of each plan descend the divergence from full "
    "precision (`--tune`). A rounding without 3 bits (quanto) leaves `auto` widths 2 and 4. Bits stand where a "
    f"plan has fewer than its budget by more than {UNSPENT}."
)
RIVALS = (
    "The same, against plans of other methods (blocks, widths 2 and 4, from `compare`) at the same bytes, written and "
    "tuned the same way. Mean: of the log-perplexity above all-4-bit over the six budgets. Best isolated: at each budget "
    "whichever of one-at-a-time, LLM-MQ, LIM, ZD and activation is best there on the held-out text in `compare` (each linear "
    "rounded once, untuned; for gptq and tuned scales another might be best as written). Worse: budgets "
    "at which `auto` is behind it by more than the 95 % bootstrap interval of the paired difference over windows."
)


def best_part(files: Mapping[str, Json]) -> list[str]:
    """Both tables and the commands."""
    items = {name: item for name, item in sorted(files.items()) if name.startswith("best_")}
    head = ["model", "rounding", "2.25", "2.5", "2.75", "3", "3.25", "3.5", "uniform 2 / 3 / 4"]
    rivals = ["model", "rounding", "auto", "CoopQ", "ratio", "best isolated", "ratio", "worse"]
    return [
        "### auto with widths 2, 3, 4 and linears as players",
        "",
        TEXT,
        "",
        *(markdown(head, [plans_row(item) for item in items.values()]) if items else [NOT_RUN]),
        "",
        RIVALS,
        "",
        *markdown(
            rivals,
            [rivals_row(item) for item in items.values() if {"coopq", "best-isolated"} <= set(item.get("rivals", ()))],
        ),
        "",
        *(made_by(name, item) for name, item in items.items()),
        "",
    ]


def rounding_of(item: Json) -> str:
    """The rounding, and whether scales were tuned."""
    return f"{item['rounding']}, tuned" if item.get("tune") else str(item["rounding"])


def plans_row(item: Json) -> list[str]:
    cells = [
        f"{cell['perplexity']:.2f} [{cell['interval'][0]:.1f}, {cell['interval'][1]:.1f}]{fewer_bits(cell)}"
        for cell in item["budgets"]
    ]
    levels = {label: item["uniform"][name] for name, label in labels(item["uniform"]).items()}
    uniform = " / ".join(f"{levels[bits]:.2f}" if bits in levels else "–" for bits in ("2", "3", "4"))
    return [item["model"], rounding_of(item), *cells, uniform]


def fewer_bits(cell: Json) -> str:
    """Average bits of a plan that leaves more than UNSPENT of its budget.

    >>> fewer_bits({"budget": 3.5, "avg_bits": 3.25}), fewer_bits({"budget": 3.5, "avg_bits": 3.495})
    (' (3.25 bits)', '')
    """
    used, budget = cell.get("avg_bits"), cell.get("budget")
    told = used is not None and budget is not None and budget - used > UNSPENT
    return f" ({used:.2f} bits)" if told else ""


def rivals_row(item: Json) -> list[str]:
    own, rivals = item["excess_over_six"], item["rivals"]
    coopq, isolated = rivals["coopq"], rivals["best-isolated"]
    worse = sum(cell["low"] > 0 for cell in isolated["auto_behind"])
    return [
        item["model"],
        rounding_of(item),
        f"{own:.4f}",
        f"{coopq['excess_over_six']:.4f}",
        f"{own / coopq['excess_over_six']:.2f}",
        f"{isolated['excess_over_six']:.4f}",
        f"{own / isolated['excess_over_six']:.2f}",
        f"{worse} of {len(isolated['auto_behind'])}",
    ]


def made_by(name: str, item: Json) -> str:
    note = f"; {item['note']}" if item.get("note") else ""
    time = f", {item['seconds']:.0f} s" if item.get("seconds") else ""
    return f"- `docs/results/{name}.json`: `{item['command']}`{time}{note}."
