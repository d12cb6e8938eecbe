"""The measured tables of README.md and other pages, from the JSON files in docs/results/; `make results` fills them in."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from real_tables import first
from route_tables import verdict_on
from saved_widths import labels

Json = dict[str, Any]
MODEL = "llama-mini"


def best(files: Mapping[str, Json]) -> list[str]:
    """Perplexity at the same bytes: the published method, `auto`, and uniform plans."""
    names = (f"compare_{MODEL}_nearest", f"best_{MODEL}_nearest", f"best_{MODEL}_gptq", f"best_{MODEL}_gptq_tuned")
    paper, plain, gptq, tuned = (files.get(name) for name in names)
    if not (paper and plain and gptq and tuned):
        return ["*not run*"]
    cells = {
        "CoopQ as published (blocks, 2 or 4 bits), nearest": paper["methods"]["coopq"]["budgets"],
        "`auto` (linears; 2, 3 or 4 bits), nearest": plain["budgets"],
        "`auto`, gptq": gptq["budgets"],
        "`auto`, gptq, scales tuned": tuned["budgets"],
    }
    budgets = [f"{row['budget']:g}" for row in gptq["budgets"]]
    uniform = {name: item["uniform"] for name, item in (("nearest", plain), ("gptq", gptq), ("tuned", tuned))}
    levels = "; ".join(
        f"{name} " + ", ".join(f"{item[width]:.1f} at {label}" for width, label in labels(item).items())
        for name, item in uniform.items()
    )
    return [
        f"WikiText-2 perplexity of {MODEL} (16 blocks, 31 million parameters; full precision {paper['perplexity_fp']:.1f}) at the same "
        "average bits of its quantized weights; plans are chosen on C4:",
        "",
        "| average bits | " + " | ".join(budgets) + " |",
        "|---|" + "---|" * len(budgets),
        *(
            f"| {name} | " + " | ".join(f"{cell['perplexity']:.1f}" for cell in row) + " |"
            for name, row in cells.items()
        ),
        "",
        f"Uniform widths: {levels}. Made by `{tuned['command']}` (and `--rounding nearest`; `apportion compare` for the first row); "
        "all models, roundings and baselines, and where the paper's ordering was not seen, in [docs/results.md](docs/results.md).",
    ]


def reference(files: Mapping[str, Json]) -> list[str]:
    """What the main job costs and gives on two cores."""
    found = files.get("reference")
    if not found:
        return ["*not run*"]
    rows = [
        f"| `{item['method']}` | {item['avg_bits']:.2f} | {item['bytes']:,} | {item['perplexity']:.2f} | {item['evaluations']} | "
        f"{item['block_forwards']:,} of {item['naive_block_forwards']:,} | {item['seconds']:.0f} s |"
        for item in found["quantized"]
    ]
    full = ", ".join(f"{item['model']} {item['perplexity']:.2f}" for item in found["full_precision"])
    return [
        f"llama-mini to 3 bits on two cores, with 8 x 256 tokens of C4 (full precision: {full}):",
        "",
        "| method | bits | bytes on disk | WikiText-2 perplexity | coalitions | block forwards, of naive | wall time |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Made by `{found['command']}`."
        + "".join(f" `{item['method']}`: {item['note']}." for item in found["quantized"] if "note" in item),
    ]


def route(files: Mapping[str, Json]) -> list[str]:
    """Router and static pipelines on the demonstration model, at one pair of weights."""
    found = files.get("demo_route")
    if not found:
        return ["*not run*"]
    at = next(item for item in found["weights"] if (item["token_weight"], item["latency_weight"]) == (0.1, 0.1))
    rows = {**at["strategies"], "best of all in hindsight (oracle)": at["oracle"], "**router**": at["router"]}
    summary = found["summary"]
    return [
        f"Measured on a made-up world: the shipped demonstration model (8 million parameters) on {found['questions']} recorded test questions, "
        "token and latency weights 0.1 (probes counted):",
        "",
        "| | quality | tokens | latency, ms | utility |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['quality']:.3f} | {row['tokens']:.0f} | {row['latency_ms']:.0f} | {row['utility']:.3f} |"
            for name, row in rows.items()
        ),
        "",
        f"Over {summary['weights']} pairs of weights the router beats the best static pipeline at {summary['beaten']}, is worse at "
        f"{summary['worse']}, and closes {summary['gap_closed_mean']:.0%} of the gap to the oracle on average. On recorded answers of "
        f"{verdict_on(files.get('route_recorded'), 'llama31_8b_hotpotqa')} (docs/results/route_recorded.json). Made by "
        f"`{found['command']}`.",
        *real(files.get("route_six600"), files.get("route_six")),
    ]


def real(found: Json | None, smaller: Json | None) -> list[str]:
    """What the router won on a real model's answers to real questions."""
    if not found:
        return []
    summary, closed = found["summary"], found["summary"]["reach_closed"]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in summary["verdicts"].items())
    return [
        "",
        f"On a real model ({found['source']['model']}), {found['questions']} questions of {len(found['families'])} sets, learned on "
        f"{found['training_questions']} others: better than the best static pipeline at {summary['beaten']} of {summary['weights']} "
        f"weights, worse at {summary['worse']} (by weight: {verdicts}); it closes {summary['gap_closed_mean']:.0%} of the gap to the oracle"
        f"{'' if closed is None else f', {closed:.0%} of what was reachable'}. {fewer(smaller)}Made by `{found['command']}`.",
    ]


def fewer(found: Json | None) -> str:
    """The same with fewer questions."""
    if not found:
        return ""
    summary = found["summary"]
    return (
        f"With {found['training_questions']} of these questions to learn from and {found['questions']} to be judged on: better at {summary['beaten']}, worse at "
        f"{summary['worse']}. "
    )


TABLES: dict[str, Callable[[Mapping[str, Json]], list[str]]] = {
    "first": first,
    "best": best,
    "reference": reference,
    "route": route,
}


def fill(
    page: Path, files: Mapping[str, Json], tables: Mapping[str, Callable[[Mapping[str, Json]], list[str]]] = TABLES
) -> None:
    """Replace what stands between `<!-- generated: NAME -->` and `<!-- end -->`."""
    text = page.read_text()
    for name, make in tables.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.S)
        body = "\n".join(make(files)) + "\n"
        text = pattern.sub(lambda match, body=body: match[1] + body + match[2], text)
    page.write_text(text)
