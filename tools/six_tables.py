"""A real model on six question-answering sets: what its pipelines answer, and what the router makes of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from route_tables import (
    NOT_RUN,
    gains,
    left_out_table,
    made,
    sentences,
    signal_table,
    weights_table,
)
from tables import interval, markdown

Json = dict[str, Any]
SIX = (
    ("Up to 600 questions a set", "six600", "route_six600"),
    ("200 questions a set", "six", "route_six"),
)
FURTHER = (
    ("600 a set", "route_six600"),
    ("200 a set", "route_six"),
    ("200 a set, a third without their passages", "route_six_gap"),
    ("200 a set, judged on the model at 3 bits", "route_six_3bit"),
    ("the same 690, learned from the model at 3 bits, 5 folds", "route_six_3bit_folds"),
)


def six_part(files: Mapping[str, Json]) -> list[str]:
    """All of it; the sets of 200 are among those of 600."""
    lines = ["### Six question-answering sets (and a seventh)", "", *overview(files)]
    for title, answered, routed in SIX:
        lines += judged(title, routed, files.get(routed))
        lines += answers(answered, files.get(answered))
    return [
        *lines,
        *answers("six_3bit", files.get("six_3bit")),
        *speeds(files.get("six600"), files.get("generation_cpu")),
    ]


def speeds(asked: Json | None, compared: Json | None) -> list[str]:
    """Answers a second: of the run itself, and before and after in one run."""
    lines = ["### Answers a second of a model in this process", ""]
    for one in (report["speed"] for report in asked["six"]["reports"] if report) if asked else ():
        rate = one["answers"] / one["seconds"]
        lines += [
            f"- `six600.json`, one of two processes on one H200: {one['answers']} answers in {one['seconds']:.0f} s, {rate:.0f} a second."
        ]
    if compared:
        names = list(compared["slots"]["answers_per_second"])
        rows = [
            [
                mode,
                *(f"{compared[mode]['answers_per_second'][name]:.3f}" for name in names),
                f"{compared['same_text_as_batches'][mode]:.0%}",
            ]
            for mode in ("batches", "slots")
        ]
        lines += [
            "",
            f"Before (growing batches) and after (slots), {compared['model']} on a {compared['device'].upper()}:",
            "",
            *markdown(["mode", *names, "same text"], rows),
            "",
            compared["conditions"],
            "",
            *made(compared, "generation_cpu"),
        ]
    return [*lines, ""] if len(lines) > 2 else []


def overview(files: Mapping[str, Json]) -> list[str]:
    """The router's record wherever it was judged."""
    rows, models = [], []
    for title, name in FURTHER:
        found = files.get(name)
        if not found:
            continue
        models.append(found["source"]["model"])
        summary = found["summary"]
        closed = summary["reach_closed"]
        rows.append(
            [
                title,
                f"{found.get('training_questions', 'folds')}, {found['questions']}",
                f"{summary['beaten']} of {summary['weights']}",
                str(summary["worse"]),
                ", ".join(f"{verdict} {count}" for verdict, count in summary["verdicts"].items()),
                interval(summary["mean_gain"]["best_static"]),
                "–" if closed is None else f"{closed:.0%}",
            ]
        )
    head = [
        "questions",
        "learned on, judged on",
        "better at",
        "worse at",
        "by verdict",
        "mean gain over the best static",
        "of the reachable",
    ]
    told = (
        f"Answers of {' and '.join(dict.fromkeys(models))}, four pipelines, each answer asked for. Better and worse: than the best static pipeline, "
        "beyond the 95 % interval, at weights of tokens and latency. At 3 bits the first router is that of full precision's answers."
    )
    return [told, "", *markdown(head, rows), ""] if rows else [NOT_RUN, ""]


def answers(name: str, found: Json | None) -> list[str]:
    """Extraction and passages by set, of all questions."""
    if not found:
        return []
    own = found["six"]
    rows = [
        answer_row(one, cells, own["answer_in_top_k"].get(one))
        for one, cells in {**own["sets"], "all": own["all"]}.items()
        if cells
    ]
    head = [
        "set",
        "answers a pipeline",
        "F1: direct",
        "rag",
        "cot",
        "rag+cot",
        "asked again: cot",
        "rag+cot",
        "not extracted: cot",
        "rag+cot",
        "answer in the passages",
    ]
    return [
        f"What `{name}` holds, both halves:",
        "",
        *markdown(head, rows),
        "",
        f"{found['note']} `docs/results/{name}.json`, made by `{found['command'].split(' --note')[0]}`.",
        "",
    ]


def answer_row(name: str, cells: Json, held: float | None) -> list[str]:
    """A set; asked again: the share of answers that ended without one and were asked for it once more."""
    reasoning = [cells["cot"], cells["rag+cot"]]
    return [
        name,
        str(cells["direct"]["answers"]),
        *(f"{cells[pipeline]['f1']:.3f}" for pipeline in ("direct", "rag", "cot", "rag+cot")),
        *(f"{cell['asked_again']:.1%}" for cell in reasoning),
        *(f"{cell['not_extracted']:.1%}" for cell in reasoning),
        "–" if held is None else f"{held:.0%}",
    ]


def judged(title: str, name: str, found: Json | None) -> list[str]:
    """A real model on six question-answering sets, judged on the half not learned from."""
    lines = [f"### {title}", ""]
    if not found:
        return [*lines, NOT_RUN, ""]
    summary, closed = found["summary"], found["summary"]["reach_closed"]
    verdicts = ", ".join(f"{verdict} at {count}" for verdict, count in summary["verdicts"].items())
    return [
        *lines,
        f"Learned on {found['training_questions']} questions, judged once on {found['questions']} others; everything that "
        "was done for an answer is counted. Utility = quality - weights x costs, in units of always RAG+CoT.",
        "",
        *six_sets(found["by_set"]),
        "",
        *weights_table(found),
        "",
        *sentences(found),
        f"By verdict: {verdicts}."
        + (
            ""
            if closed is None
            else f" Of what was reachable (the best of all that was fitted) it gained {closed:.0%}."
        ),
        *chosen_text(found["savings_chosen_on_folds"]),
        "",
        "Mean over the weights of the router's utility minus another's:",
        "",
        *markdown(["against", "difference"], ([name, interval(gain)] for name, gain in gains(found))),
        "",
        "What the router loses when a feature is dealt out anew among the judged questions (the ten that cost most, and "
        "groups), mean utility over the weights:",
        "",
        *worth_table(found["worth"]),
        "",
        *left_out_table(found["left_out"]),
        *signal_table(found["signals"]),
        *made(found, name),
    ]


def six_sets(rows: Sequence[Json]) -> list[str]:
    """Quality (tokens; ms) of each pipeline in each set."""
    names = list(rows[0]["pipelines"])
    body = [
        [
            row["set"],
            str(row["questions"]),
            *(_cell(row["pipelines"][name]) for name in names),
            f"{row['best_of_four']:.3f}",
        ]
        for row in rows
    ]
    return markdown(["set", "questions", *names, "best of four in hindsight"], body)


def _cell(one: Json) -> str:
    timed = "" if one["latency_ms"] is None else f"; {one['latency_ms']:.0f} ms"
    return f"{one['quality']:.3f} ({one['tokens']:.0f}{timed})"


def chosen_text(found: Json) -> list[str]:
    """Savings against always RAG+CoT at weights chosen before the judged half was looked at."""
    if found["weights"] is None:
        return [f"Savings against always RAG+CoT: {found['reason']}."]
    latency = "" if found["latency_saved"] is None else f" and {found['latency_saved']:.0%} less latency"
    return [
        f"At the weights that save most at no lower quality on folds of the learning half, "
        f"({found['weights'][0]:g}, {found['weights'][1]:g}): {found['tokens_saved']:.0%} fewer tokens{latency} than always "
        f"RAG+CoT, quality {interval(found['quality_change'])}."
    ]


def worth_table(rows: Sequence[Json]) -> list[str]:
    shown = [*[row for row in rows if not row["feature"].startswith("all ")][:10]]
    shown += [row for row in rows if row["feature"].startswith("all ")]
    return markdown(["feature", "worth"], ([row["feature"], interval(row["worth"])] for row in shown))
