"""An evaluation as Markdown and as a folder; its first line says where static pipelines are not beaten."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from apportion.core.artifact import Json, plain, read_json, write_bytes, write_json, write_manifest
from apportion.core.bootstrap import Interval
from apportion.route.evaluation.evaluation import AtWeights, Evaluation, Row
from apportion.route.evaluation.plot import draw_frontier

KIND = "apportion.evaluation"
FILES = ("evaluation.json", "report.md", "frontier.png")


def write_evaluation(folder: Path, evaluation: Evaluation) -> Json:
    """Write evaluation.json, report.md and frontier.png (from the saved JSON), and the manifest last.

    Args:
        folder: there already, claimed by the caller; files of these names are replaced.

    Returns:
        The object in evaluation.json.
    """
    saved: Json = {"kind": KIND, **plain(evaluation)}
    write_json(folder / "evaluation.json", saved)
    write_bytes(folder / "report.md", report(evaluation).encode())
    draw_frontier(read_json(folder / "evaluation.json"), folder / "frontier.png")
    write_manifest(folder, {"kind": KIND}, FILES)
    return saved


def report(evaluation: Evaluation) -> str:
    """The whole report; its first line is `summary.first_line`."""
    parts = [
        evaluation.summary.first_line,
        *_warning(evaluation),
        _setting(evaluation),
        "## Utility at each weights\n\n" + _utilities(evaluation.weights),
        "## What there was to win\n\n" + _reach(evaluation),
        "## Over all weights\n\n" + _contenders(evaluation),
        "## Savings against always " + evaluation.protocol["scale"]["strategy"] + "\n\n" + _savings(evaluation),
        "## Strategies in detail (latency weight 0)\n\n" + _details(evaluation.weights),
        "## Families the router never saw\n\n" + _left_out(evaluation),
        "## Calibration of the heads\n\n" + _calibration(evaluation),
        "## What each signal tells alone\n\n" + _signals(evaluation),
        "## Not done\n\n"
        + ("\n".join(f"- {why}" for why in (*evaluation.failed, *evaluation.dropped)) or "Nothing was left out."),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _warning(evaluation: Evaluation) -> list[str]:
    seen, said = evaluation.trained_on_these, []
    if seen:
        said.append(f"**{seen} of the {evaluation.questions} questions were training questions: too good to be true.**")
    if repeated := evaluation.repeated_texts:
        said.append(
            f"{repeated} of the {evaluation.questions} questions repeat the text of another: equal texts share a fold "
            "and are drawn together in intervals."
        )
    if evaluation.failed:
        said.append(f"**Not judged, since they could not be fitted: {'; '.join(evaluation.failed)}.**")
    return said


def _setting(evaluation: Evaluation) -> str:
    families = ", ".join(f"{name} ({count})" for name, count in evaluation.families.items())
    scale, protocol = evaluation.protocol["scale"], evaluation.protocol
    summary = evaluation.summary
    closed = (
        "there is no gap to the oracle"
        if summary.gap_closed_mean is None
        else f"{summary.gap_closed_mean:.0%} of the gap to the oracle is closed on average"
    )
    latency = "not recorded" if scale["latency_ms"] is None else f"{scale['latency_ms']:.0f} ms"
    unit = "millionths of the currency" if scale["price"] else "tokens"
    return (
        f"{evaluation.questions} questions: {families}. Split: {protocol['split']}. "
        f"A weight of 1 is worth {scale['tokens']:.0f} {unit}, or {latency}, per point of quality "
        f"(always {scale['strategy']}). Features: {', '.join(protocol['features']) or 'none'}.\n\n"
        f"The router is shown better than the best static pipeline at {summary.beaten} of {summary.weights} weights "
        f"and worse at {summary.worse} of them (worse than the one best in hindsight at "
        f"{summary.worse_than_hindsight}); {closed}. Intervals: {protocol['interval']}."
    )


def _span(interval: Interval) -> str:
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _utilities(rows: Sequence[AtWeights]) -> str:
    head = ["token w", "latency w", "best static", "its utility", "router", "oracle", "gain", "verdict"]
    head += ["gap closed", "decided by"]
    said = (
        "The best static strategy is the one best on the training questions, so each fold has its own; where folds "
        "differ, the one best over all questions stands after the semicolon.\n\n"
    )
    return said + table(
        head,
        (
            [
                f"{row.token_weight:g}",
                f"{row.latency_weight:g}",
                static_names(row),
                f"{row.best_static.utility:.4f}",
                f"{row.router.utility:.4f}",
                f"{row.oracle.utility:.4f}",
                _span(row.gain.interval),
                row.gain.verdict,
                "-" if row.gap_closed is None else f"{row.gap_closed:.0%}",
                ", ".join(f"{tier} {share:.0%}" for tier, share in row.tiers.items()),
            ]
            for row in rows
        ),
    )


def static_names(row: AtWeights) -> str:
    """The best static strategy of the training questions; where folds differ, all of them and the overall one."""
    names = "/".join(row.best_static_names)
    return names if len(row.best_static_names) == 1 else f"{names}; overall {row.best_static_hindsight_name}"


def _reach(evaluation: Evaluation) -> str:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in evaluation.summary.verdicts.items())
    closed = evaluation.summary.reach_closed
    said = (
        f"Weights by verdict: {counts}. "
        + ("" if closed is None else f"Of what was reachable the router gained {closed:.0%}. ")
        + 'Reachable is what the best of all that was fitted gained, knowing the data set included. "Nothing to win": '
        'not a hundredth of a point; "not learned": something gains and the router does not; "needed": questions '
        "that show a gain of that size.\n\n"
    )
    head = ["token w", "latency w", "verdict", "reachable gain", "by", "router's share of it", "needed"]
    repeated = any(row.reach.repeated for row in evaluation.weights)
    head += ["repeated oracle"] if repeated else []
    return said + table(head, (_reach_cells(row, repeated=repeated) for row in evaluation.weights))


def _reach_cells(row: AtWeights, *, repeated: bool) -> list[str]:
    found = row.reach
    cells = [f"{row.token_weight:g}", f"{row.latency_weight:g}", found.verdict, _span(found.gain), found.by]
    cells += [
        "-" if found.closed is None else f"{found.closed:.0%}",
        "-" if found.needed is None else str(found.needed),
    ]
    return cells + ([_span(found.repeated) if found.repeated else "-"] if repeated else [])


def _signals(evaluation: Evaluation) -> str:
    if not evaluation.signals:
        return "No feature was measured."
    said = (
        "Area under the ROC curve, .5 being chance: of the draft being right, of retrieval helping, of reasoning "
        "helping (after retrieval where there is any). -: fewer than five questions on either side.\n\n"
    )
    rows = (
        [one.family, one.feature, one.group, str(one.known)]
        + [
            "-" if area is None else f"{area:.3f}"
            for area in (one.draft_right, one.retrieval_helps, one.reasoning_helps)
        ]
        + [one.source]
        for one in evaluation.signals
    )
    head = ["set", "feature", "group", "known", "draft right", "retrieval helps", "reasoning helps", "source"]
    return said + table(head, rows)


def _contenders(evaluation: Evaluation) -> str:
    summary, told = evaluation.summary, evaluation.protocol["contenders"]
    order = sorted(summary.mean_utility, key=lambda name: -summary.mean_utility[name])
    rows = (
        [
            name,
            f"{summary.mean_utility[name]:.4f}",
            _span(summary.mean_gain[name]) if name in summary.mean_gain else "",
            told.get(name, ""),
        ]
        for name in order
    )
    return table(["contender", "mean utility", "router minus it", "what it is"], rows)


def _savings(evaluation: Evaluation) -> str:
    rows = (
        [
            saving.family,
            str(saving.questions),
            saving.what,
            "none" if saving.saved is None else f"{saving.saved:.0%}",
            "" if saving.saved is None else f"({saving.token_weight:g}, {saving.latency_weight:g})",
            _span(saving.quality_change) if saving.quality_change else "",
        ]
        for saving in evaluation.savings
    )
    head = ["family", "questions", "what", "saved", "(token, latency) weights", "change in quality"]
    said = (
        "The largest saving at which mean quality is no lower; the weights are the best for these very "
        "questions, so this is a best case. The paper claims up to 86 % fewer tokens, 84 % less latency.\n\n"
    )
    return said + table(head, rows)


def _details(rows: Sequence[AtWeights]) -> str:
    lines: list[list[str]] = []
    for row in (row for row in rows if row.latency_weight == 0):
        shown = {"router": row.router, **row.strategies, **row.baselines, "oracle": row.oracle}
        lines += [[f"{row.token_weight:g}", name, *_cells(value)] for name, value in shown.items()]
    return table(["token w", "", "quality", "tokens", "price", "latency ms", "utility", "regret"], lines)


def _cells(row: Row) -> list[str]:
    latency = "-" if row.latency_ms is None else f"{row.latency_ms:.1f}"
    price = "-" if row.price is None else f"{row.price:.1f}"
    return [f"{row.quality:.3f}", f"{row.tokens:.0f}", price, latency, f"{row.utility:.4f}", f"{row.regret:.4f}"]


def _left_out(evaluation: Evaluation) -> str:
    if not evaluation.left_out:
        return "Not done; see below."
    rows = (
        [
            one.family,
            str(one.questions),
            _span(one.mean_gain),
            str(sum(gain.verdict == "better" for _, _, gain in one.gains)),
            str(sum(gain.verdict == "worse" for _, _, gain in one.gains)),
        ]
        for one in evaluation.left_out
    )
    return table(["family", "questions", "mean gain over best static", "weights better", "worse"], rows)


def _calibration(evaluation: Evaluation) -> str:
    if not evaluation.calibration:
        return "Not measured: the profile lacks features that the router reads."
    rows = (
        [
            str(head["tier"]),
            str(head["head"]),
            f"{head['base_rate']:.3f}",
            f"{head['brier']:.3f} ({head['brier_base']:.3f})",
            f"{head['ece']:.3f} ({head['raw_ece']:.3f})",
            f"{head['counted_brier']:.3f}, {head['counted_ece']:.3f}",
            f"{head['temperature']:.2f}",
            str(head["on"]),
        ]
        for head in evaluation.calibration
    )
    head = ["tier", "head", "base rate", "Brier (of base rate)", "ECE (raw)"]
    head += ["unweighted Brier, ECE", "temperature", "questions"]
    said = "Questions are weighted by what is at stake; token weights pooled; one line a router and head."
    return said + "\n\n" + table(head, rows)


def signals_text(saved: Sequence[Json]) -> list[str]:
    """Lines for people: each set's features that tell anything most, from the saved signals."""
    lines = ["signals alone, by area under the ROC curve (.5: chance), the three farthest from chance of each set:"]
    kinds = {"draft_right": "draft right", "retrieval_helps": "retrieval helps", "reasoning_helps": "reasoning helps"}
    for family in dict.fromkeys(one["family"] for one in saved):
        for key, said in kinds.items():
            known = [one for one in saved if one["family"] == family and one[key] is not None]
            best = sorted(known, key=lambda one: -abs(one[key] - 0.5))[:3]
            if best:
                lines.append(f"  {family}, {said}: " + ", ".join(f"{one['feature']} {one[key]:.2f}" for one in best))
    return lines if len(lines) > 1 else []
