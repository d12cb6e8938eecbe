"""An evaluation as Markdown. Its first line says where the router does not beat the static pipelines."""

from collections.abc import Iterable, Sequence

from apportion.core.bootstrap import Interval
from apportion.route.evaluation.evaluation import AtWeights, Evaluation, Row


def report(evaluation: Evaluation) -> str:
    """The whole report; its first line is `summary.first_line`."""
    parts = [
        evaluation.summary.first_line,
        *_warning(evaluation),
        _setting(evaluation),
        "## Utility at each weights\n\n" + _utilities(evaluation.weights),
        "## Over all weights\n\n" + _contenders(evaluation),
        "## Savings against always " + evaluation.protocol["scale"]["strategy"] + "\n\n" + _savings(evaluation),
        "## Strategies in detail (latency weight 0)\n\n" + _details(evaluation.weights),
        "## Families the router never saw\n\n" + _left_out(evaluation),
        "## Calibration of the heads\n\n" + _calibration(evaluation),
        "## Not done\n\n" + ("\n".join(f"- {why}" for why in evaluation.dropped) or "Nothing was left out."),
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
    seen = evaluation.trained_on_these
    text = f"**{seen} of the {evaluation.questions} questions were training questions: too good to be true.**"
    return [text] if seen else []


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
    return (
        f"{evaluation.questions} questions: {families}. Split: {protocol['split']}. "
        f"A weight of 1 is worth {scale['tokens']:.0f} tokens, or {latency}, per point of quality "
        f"(always {scale['strategy']}). Features: {', '.join(protocol['features']) or 'none'}.\n\n"
        f"Of {summary.weights} weights the router is shown better than the best static pipeline at "
        f"{summary.beaten} and worse at {summary.worse} (worse than the one best in hindsight at "
        f"{summary.worse_than_hindsight}); {closed}. Intervals: {protocol['interval']}."
    )


def _span(interval: Interval) -> str:
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _utilities(rows: Sequence[AtWeights]) -> str:
    head = ["token w", "latency w", "best static", "its utility", "router", "oracle", "gain", "verdict"]
    head += ["gap closed", "decided by"]
    return table(
        head,
        (
            [
                f"{row.token_weight:g}",
                f"{row.latency_weight:g}",
                "/".join(row.best_static_names),
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
    return table(["token w", "", "quality", "tokens", "latency ms", "utility", "regret"], lines)


def _cells(row: Row) -> list[str]:
    latency = "-" if row.latency_ms is None else f"{row.latency_ms:.1f}"
    return [f"{row.quality:.3f}", f"{row.tokens:.0f}", latency, f"{row.utility:.4f}", f"{row.regret:.4f}"]


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
