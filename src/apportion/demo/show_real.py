"""A real model's answers to real questions beside the made-up world's: read from the saved results, nothing is asked.

docs/results/six600_judge.parquet   the four pipelines' outcomes on the questions that routers are judged by
docs/results/route_six600.json      what the router made of them, learned from six600_learn.parquet

Both lie in the source tree, not in the installed package.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apportion.core.artifact import Json, read_json, sha256_file
from apportion.demo.show_route import SHOWN_WEIGHTS, StrategyRow, strategy_rows, table_text
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.file import read_profile
from apportion.route.profile.profile import Profile

RESULTS = Path(__file__).parents[3] / "docs" / "results"
OUTCOMES, ROUTED = "six600_judge.parquet", "route_six600.json"


@dataclass(frozen=True, slots=True)
class SetRow:
    """Mean quality of each pipeline on a set of questions, in the order of `STRATEGIES`; tokens and ms a question."""

    name: str
    questions: int
    quality: tuple[float, ...]
    tokens: tuple[float, ...]
    latency_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Gain:
    """The router's utility over that of the best static pipeline, and its 95 % interval, at a pair of weights."""

    token_weight: float
    latency_weight: float
    over: str
    gain: tuple[float, float, float]
    verdict: str


@dataclass(frozen=True, slots=True)
class Against:
    """The router against always RAG+CoT, at weights that were chosen on folds of the questions learned from.

    Attributes:
        quality_change: mean, low and high of the 95 % interval. tokens_saved, latency_saved: shares.
    """

    token_weight: float
    latency_weight: float
    quality_change: tuple[float, float, float]
    tokens_saved: float
    latency_saved: float | None


@dataclass(frozen=True, slots=True)
class RealShown:
    """What was measured on a real model.

    Attributes:
        commands: what made the files that this is read from.
        weights: pairs of weights that the router was judged at. better, worse: at how many of them it is better or
            worse than the best static pipeline, beyond its 95 % interval.
        rows: pipelines, router and oracle at a few weights. gains: at the same weights.
        against: None where no weights kept the quality.
        weaker: what does not fit together.
    """

    model: str
    commands: tuple[str, ...]
    sets: tuple[SetRow, ...]
    rows: tuple[StrategyRow, ...]
    gains: tuple[Gain, ...]
    weights: int
    better: int
    worse: int
    against: Against | None
    weaker: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotThere:
    """Why there is no second table."""

    reason: str


def show_real(results: Path = RESULTS) -> RealShown | NotThere:
    """The saved results as tables.

    Args:
        results: the folder with both files.

    Cost: a quarter of a second.

    >>> show_real(Path("nowhere")).reason
    'no table of a real model: six600_judge.parquet, route_six600.json are not in nowhere (they lie in the source tree)'
    """
    missing = [name for name in (OUTCOMES, ROUTED) if not (results / name).is_file()]
    if missing:
        where = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {results}"
        return NotThere(f"no table of a real model: {where} (they lie in the source tree)")
    saved, judged = read_json(results / ROUTED), read_profile(results / OUTCOMES)
    summary, source = saved["summary"], results / "six600.json"
    commands = (read_json(source)["command"],) if source.is_file() else ()
    fits = sha256_file(results / OUTCOMES) == saved["sha256"]["judge"]
    return RealShown(
        model=judged.source.model,
        commands=tuple(_without_note(one) for one in (*commands, saved["command"])),
        sets=set_rows(judged),
        rows=strategy_rows(saved),
        gains=tuple(
            _gain(at) for at in saved["weights"] if (at["token_weight"], at["latency_weight"]) in SHOWN_WEIGHTS
        ),
        weights=summary["weights"],
        better=summary["beaten"],
        worse=summary["worse"],
        against=_against(saved["savings_chosen_on_folds"]),
        weaker=() if fits else (f"{ROUTED} was made from another {OUTCOMES} than the one beside it",),
    )


def set_rows(judged: Profile) -> tuple[SetRow, ...]:
    """Each set's means, then those of all questions."""
    names = np.array(judged.dataset)
    parts = [(name, judged.select(names == name)) for name in np.unique(names).tolist()]
    return tuple(_set_row(name, part) for name, part in (*parts, ("all", judged)))


def real_text(found: RealShown | NotThere) -> str:
    """The tables for people, or the line that says why there are none."""
    if isinstance(found, NotThere):
        return found.reason
    lines = [f"Routing: {found.model}, real questions that the router did not learn from; saved, nothing is asked now"]
    lines += [f"  made by: {command}" for command in found.commands]
    lines += [f"  {said}" for said in found.weaker]
    lines += [f"{'quality on':<12}{'questions':>9}" + "".join(f"{name:>9}" for name in STRATEGIES)]
    lines += [_set_text(row.name, str(row.questions), row.quality, ".3f") for row in found.sets]
    whole = found.sets[-1]
    lines += [_set_text("tokens", "", whole.tokens, ".0f"), _set_text("ms", "", whole.latency_ms, ".0f")]
    lines += ["", table_text(found.rows)]
    lines += ["router over the best static pipeline (95 % interval):", *map(_gain_text, found.gains)]
    lines += [
        f"Router: better than the best static pipeline at {found.better} of {found.weights} weights, worse at "
        f"{found.worse} (beyond 95 % intervals)."
    ]
    return "\n".join([*lines, *([_against_text(found.against)] if found.against else [])])


def _set_row(name: str, part: Profile) -> SetRow:
    quality, tokens, latency = (
        tuple(map(float, each.mean(axis=0))) for each in (part.quality, part.tokens, part.latency_ms)
    )
    return SetRow(name, part.n, quality, tokens, latency)


def _set_text(name: str, count: str, values: tuple[float, ...], form: str) -> str:
    return f"  {name:<10}{count:>9}" + "".join(f"{value:>9{form}}" for value in values)


def _gain(at: Json) -> Gain:
    interval = at["gain"]["interval"]
    over, triple = " or ".join(at["best_static_names"]), (interval["mean"], interval["low"], interval["high"])
    return Gain(at["token_weight"], at["latency_weight"], over, triple, at["gain"]["verdict"])


def _gain_text(found: Gain) -> str:
    mean, low, high = found.gain
    weights = f"({found.token_weight:g}, {found.latency_weight:g})"
    return f"  {weights:<12}{mean:+.3f} [{low:+.3f}, {high:+.3f}] over {found.over}: {found.verdict}"


def _against(saved: Json) -> Against | None:
    if saved["weights"] is None:
        return None
    change = saved["quality_change"]
    interval = change["mean"], change["low"], change["high"]
    token_weight, latency_weight = saved["weights"]
    return Against(token_weight, latency_weight, interval, saved["tokens_saved"], saved["latency_saved"])


def _against_text(found: Against) -> str:
    mean, low, high = found.quality_change
    faster = "" if found.latency_saved is None else f", {found.latency_saved:.0%} less latency"
    return (
        f"Against always RAG+CoT at weights ({found.token_weight:g}, {found.latency_weight:g}), chosen on folds: "
        f"quality {mean:+.3f} [{low:+.3f}, {high:+.3f}], {found.tokens_saved:.0%} fewer tokens{faster}."
    )


def _without_note(command: str) -> str:
    """A command without the words that a person added to it."""
    return command.partition(" --note ")[0]
