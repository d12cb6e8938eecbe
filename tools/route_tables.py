"""The routing half of docs/results.md (the six sets: `six_tables`), from the JSON files in docs/results/; `make results` writes it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tables import interval, markdown

Json = dict[str, Any]
NOT_RUN = "*not run*"
LOOKED_AT = "llama31_8b_hotpotqa"  # the only recorded set with a retrieved answer to look at
RECORDED = {
    "llama31_8b_hotpotqa": "Llama-3.1-8B on HotpotQA",
    "llama31_8b_six_cot_ragcot": "Llama-3.1-8B on six benchmarks, CoT and RAG+CoT",
    "gpt3_direct_cot": "GPT-3, Direct and CoT",
}


def route_part(files: Mapping[str, Json]) -> list[str]:
    """The tables of the routing half after those of `six_tables`."""
    return [
        *demonstration(files.get("demo_route")),
        *traffic(files.get("demo_route_traffic")),
        *three_bits(files.get("demo_route_3bit")),
        *recorded(files.get("route_recorded")),
        *two_decisions(files.get("route_recorded")),
    ]


def signal_table(rows: Sequence[Json]) -> list[str]:
    """Areas under the ROC curve over all sets, with the smallest and largest single set."""
    kinds = ("draft_right", "retrieval_helps", "reasoning_helps")
    body = []
    for row in (row for row in rows if row["family"] == "all"):
        cells = [row["feature"]]
        for kind in kinds:
            own = [
                one[kind] for one in rows if one["feature"] == row["feature"] and one["family"] != "all" and one[kind]
            ]
            spread = f" ({min(own):.2f} to {max(own):.2f})" if own else ""
            cells.append("–" if row[kind] is None else f"{row[kind]:.3f}{spread}")
        body.append(cells)
    title = "Each signal alone, area under the ROC curve over all sets (in single sets):"
    return [title, "", *markdown(["feature", "draft right", "retrieval helps", "reasoning helps"], body), ""]


def demonstration(found: Json | None) -> list[str]:
    """The router on the demonstration's test questions: weights, contenders, savings, families left out."""
    lines = ["### The demonstration model", ""]
    if not found:
        return [*lines, NOT_RUN, ""]
    return [
        *lines,
        f"Learned on {found['training_questions']} questions, judged on {found['questions']} others; probes counted; "
        f"latency: {found['latency']}. Utility = quality - weights x costs, in units of always RAG+CoT.",
        "",
        *weights_table(found),
        "",
        *sentences(found),
        "",
        "Mean over the weights of the router's utility minus another's:",
        "",
        *markdown(["against", "difference"], ([name, interval(gain)] for name, gain in gains(found))),
        "",
        "Largest savings against always RAG+CoT at no lower mean quality, each at its own weights, which were picked "
        "on these very questions:",
        "",
        *savings_table(found["savings"]),
        "",
        *left_out_table(found["left_out"]),
        *made(found, "demo_route"),
    ]


def gains(found: Json) -> Iterable[tuple[str, Json]]:
    return sorted(found["summary"]["mean_gain"].items(), key=lambda pair: float(pair[1]["mean"]))


def weights_table(found: Json) -> list[str]:
    rows = []
    for at in found["weights"]:
        closed = "–" if at["gap_closed"] is None else f"{at['gap_closed']:.0%}"
        rows.append(
            [
                f"{at['token_weight']:g}, {at['latency_weight']:g}",
                f"{at['best_static']['utility']:.3f} ({', '.join(at['best_static_names'])})",
                f"{at['router']['utility']:.3f}",
                f"{at['oracle']['utility']:.3f}",
                interval(at["gain"]["interval"]),
                closed,
                f"{at['router']['quality']:.3f}",
                f"{at['router']['tokens']:.0f}",
                "–" if at["router"]["latency_ms"] is None else f"{at['router']['latency_ms']:.0f}",
            ]
        )
    head = ["weights: token, latency", "best static", "router", "oracle", "gain [95 %]", "gap closed"]
    return markdown([*head, "quality", "tokens", "ms"], rows)


def sentences(found: Json) -> list[str]:
    """What the summary says, and the weights that were chosen before the test."""
    summary = found["summary"]
    lines = [
        f"Better than the best static pipeline at {summary['beaten']} of {summary['weights']} weights, worse at "
        f"{summary['worse']} of them; {summary['gap_closed_mean']:.0%} of the gap to the oracle closed on average."
    ]
    chosen = found.get("weights_chosen_on_training_questions")
    if chosen:
        on = chosen["on_test"]
        lines.append(
            f"Weights chosen by folds of the training questions, ({on['token_weight']:g}, {on['latency_weight']:g}): "
            f"{on['tokens_saved']:.0%} fewer tokens and {on['latency_saved']:.0%} less latency than always RAG+CoT, "
            f"quality {on['quality_change']:+.3f}."
        )
    return lines


def savings_table(savings: Sequence[Json]) -> list[str]:
    families = dict.fromkeys(row["family"] for row in savings)
    cells = {(row["family"], row["what"]): row for row in savings}
    rows = [
        [family, str(cells[family, "tokens"]["questions"]), *(saved(cells.get((family, what))) for what in KINDS)]
        for family in families
    ]
    return markdown(["family", "questions", "tokens", "latency", "both (the smaller)"], rows)


KINDS = ("tokens", "latency", "both")


def saved(cell: Json | None) -> str:
    if cell is None or cell["saved"] is None:
        return "none"
    return f"{cell['saved']:.0%} (quality {cell['quality_change']['mean']:+.3f})"


def left_out_table(rows: Sequence[Json]) -> list[str]:
    """Each family judged by a router that never saw it."""
    if not rows:
        return []
    body = [[row["family"], str(row["questions"]), interval(row["mean_gain"])] for row in rows]
    title = (
        f"Each family judged by a router trained on the other {len(rows) - 1}, mean gain over the best static pipeline:"
    )
    return [title, "", *markdown(["family", "questions", "gain"], body), ""]


def traffic(found: Json | None) -> list[str]:
    """The same router in the mixture of a service."""
    lines = ["### In the mixture of a service", ""]
    if not found:
        return [*lines, NOT_RUN, ""]
    shares = ", ".join(f"{name} {share}" for name, share in found["mixture"].items())
    rows = savings_table([row for row in found["savings"] if row["family"] == "all"])
    return [
        *lines,
        f"{found['questions']} of the test questions in the shares {shares}.",
        "",
        *sentences(found),
        "",
        *rows,
        "",
        *made(found, "demo_route_traffic"),
    ]


def three_bits(found: Json | None) -> list[str]:
    """What three bits change."""
    lines = ["### The demonstration model at 3 bits", ""]
    if not found:
        return [*lines, NOT_RUN, ""]
    pipelines, times = found["pipelines"], found["latency_ms"]
    rows = [
        [
            name,
            f"{cell['f1']['full']:.3f}",
            f"{cell['f1']['three_bit']:.3f}",
            interval(cell["f1"]["change"]),
            f"{cell['tokens']['full']:.0f} -> {cell['tokens']['three_bit']:.0f}",
            f"{times[name]['full']:.0f} -> {times[name]['three_bit']:.0f}",
        ]
        for name, cell in pipelines.items()
    ]
    routers = [
        [
            label,
            *(f"{found[key]['summary']['mean_utility'][name]:.3f}" for name in ("best_static", "router", "oracle")),
            interval(found[key]["summary"]["mean_gain"]["best_static"]),
            f"{found[key]['summary']['gap_closed_mean']:.0%}",
        ]
        for label, key in (("full precision", "router_full"), ("3 bits, router refitted", "router_three_bit"))
    ]
    low = found["quantized"]
    return [
        *lines,
        f"Quantized by this project to {low['avg_bits']:.2f} bits on average ({low['rounding']}, written with "
        f"{low['apply_rounding']}; {low['seconds']:.0f} s). Both models answered the same {found['test_questions']} test "
        f"questions; latency on {found['latency_questions']} of them, one at a time, taking turns.{timed_apart(found)}",
        "",
        *markdown(["pipeline", "F1", "F1 at 3 bits", "change [95 %]", "tokens", "ms"], rows),
        "",
        f"Routers fitted on {found['router_full']['training_questions']} questions of each, token weights only; mean "
        "utility over the weights:",
        "",
        *markdown(["model", "best static", "router", "oracle", "gain [95 %]", "gap closed"], routers),
        "",
        *made(found, "demo_route_3bit"),
    ]


def timed_apart(found: Json) -> str:
    """How latencies were had that are of a later state than the rest.

    >>> timed_apart({}), timed_apart({"latency": {"command": "python b.py", "conditions": "One thread."}})
    ('', ' Latency was measured later than the rest. One thread. Made by `python b.py`.')
    """
    later = found.get("latency")
    if not later:
        return ""
    conditions = f" {later['conditions']}" if later.get("conditions") else ""
    return f" Latency was measured later than the rest.{conditions} Made by `{later['command']}`."


def recorded(found: Json | None) -> list[str]:
    """Recorded outcomes of real models, on folds."""
    lines = ["### Recorded answers of large models", ""]
    if not found:
        return [*lines, NOT_RUN, ""]
    for name, title in RECORDED.items():
        if name in found:
            one = found[name]
            before = {row[0]: row[2] for row in found.get("before", {}).get("gains", {}).get(name, []) if row[1] == 0}
            rows = [
                [
                    f"{at['token_weight']:g}",
                    f"{at['best_static']['utility']:.3f} ({', '.join(at['best_static_names'])})",
                    f"{at['router']['utility']:.3f}",
                    interval(at["gain"]["interval"]),
                    f"{at['oracle']['utility']:.3f}",
                    *([at["reach"]["verdict"]] if "reach" in at else []),
                    *([interval(before[at["token_weight"]])] if before else []),
                ]
                for at in one["weights"]
            ]
            head = ["token weight", "best static", "router", "gain [95 %]", "oracle"]
            head += ["verdict"] if "reach" in one["weights"][0] else []
            head += ["gain before"] if before else []
            lines += [f"{title}, {one['questions']} questions, 5 folds:", "", *markdown(head, rows), ""]
    return [*lines, *made(found, "route_recorded")]


def two_decisions(whole: Json | None) -> list[str]:
    """What a look at the retrieved answer was worth on recorded answers of a large model."""
    lines = ["### Recorded answers, with a second decision", ""]
    if not whole or not whole.get("before"):
        return [*lines, NOT_RUN, ""]
    found = whole[LOOKED_AT]
    earlier = {token: gain for token, _, gain in whole["before"]["gains"][LOOKED_AT]}
    rows = []
    for at in found["weights"]:
        static = at["best_static"]["utility"]
        rows.append(
            [
                f"{at['token_weight']:g}",
                f"{static:.3f} ({', '.join(at['best_static_names'])})",
                interval(earlier[at["token_weight"]]),
                interval(at["gain"]["interval"]),
                f"{at['baselines']['escalating']['utility'] - static:+.3f}",
                at["reach"]["verdict"],
                "–" if at["reach"]["needed"] is None else str(at["reach"]["needed"]),
            ]
        )
    head = [
        "token weight",
        "best static",
        "gain, one decision (before)",
        "gain, two decisions",
        "always looking, no gate",
    ]
    return [
        *lines,
        f"{RECORDED[LOOKED_AT]}, {found['questions']} questions, 5 folds; the passages are found anew, since "
        "those of the recording were not kept.",
        "",
        *markdown([*head, "verdict", "questions it would take"], rows),
        "",
        *signal_table(found["signals"]),
        *made(whole, "route_recorded"),
    ]


def verdict_on(found: Json | None, name: str) -> str:
    """In a few words, how the router did on a recorded profile."""
    if not found or name not in found:
        return f"{RECORDED[name]}: not run"
    summary = found[name]["summary"]
    return (
        f"{RECORDED[name]} it is better than the best static pipeline at {summary['beaten']} of "
        f"{summary['weights']} token weights and worse at {summary['worse']}"
    )


def made(found: Json, name: str) -> list[str]:
    return [f"Made by `{found['command']}` (`docs/results/{name}.json`).", ""]
