"""The saved result of comparing a router: values only, in the shape of evaluation.json."""

from dataclasses import dataclass
from typing import Any

from apportion.core.bootstrap import Interval

BETTER, WORSE, UNCLEAR, SAME = "better", "worse", "no difference shown", "the same choices"
GAINED, NOTHING, NOT_LEARNED, TOO_FEW = "gained", "nothing to win", "not learned", "too few questions to tell"


@dataclass(frozen=True, slots=True)
class Row:
    """Means over questions, all that was done counted.

    Attributes:
        price: millionths of its currency; None without one. latency_ms: None where it was not recorded.
    """

    quality: float
    tokens: float
    price: float | None
    latency_ms: float | None
    utility: float
    regret: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean paired difference in utility, router minus another, and what it shows."""

    over: str
    interval: Interval
    verdict: str


@dataclass(frozen=True, slots=True)
class Reach:
    """What there was to win at some weights, beside what the router won.

    Attributes:
        by: of everything fitted on the training questions, knowing the data set included, what got most here.
        gain: that minus the best static strategy; chosen in hindsight, so rather too much than too little.
        repeated: the oracle of a repeated run minus the best static strategy; None without such a run.
        closed: the router's gain as a share of it; None where it is not above 0.
        needed: questions that it takes to show a difference as large as `gain` (two-sided 5 %, power 80 %) if
            it is as variable as here; None where nothing gained.
        verdict: "gained"; "nothing to win": not even `gain` may be as much as a hundredth of a point; "not
            learned": something is shown to gain and the router is not; "too few questions to tell".
    """

    by: str
    gain: Interval
    repeated: Interval | None
    closed: float | None
    needed: int | None
    verdict: str


@dataclass(frozen=True, slots=True)
class AtWeights:
    """Everything at one pair of weights.

    Attributes:
        strategies: always each of the strategies. baselines: everything else that was compared.
        best_static: the strategy best on training questions; best_static_names: which (folds may differ).
        best_static_hindsight: the one best over all the very test questions, and its name.
        gap_closed: share of the way from best_static to the oracle; None when there is no gap.
        tiers: share of the questions that each tier of the router decided.
    """

    token_weight: float
    latency_weight: float
    strategies: dict[str, Row]
    baselines: dict[str, Row]
    best_static: Row
    best_static_names: tuple[str, ...]
    best_static_hindsight: Row
    best_static_hindsight_name: str
    oracle: Row
    router: Row
    gain: Gain
    gain_hindsight: Gain
    gap_closed: float | None
    tiers: dict[str, float]
    reach: Reach


@dataclass(frozen=True, slots=True)
class Saving:
    """The largest saving against always the reference strategy at no lower quality, in one family.

    what: tokens, price, latency, or both (tokens and latency), where `saved` is the smaller of the two at the same
    weights. The weights are those that save most on these very questions: a best case, as papers report it.
    saved is None when no weights kept the quality.
    """

    family: str
    questions: int
    what: str
    reference: str
    saved: float | None
    token_weight: float | None
    latency_weight: float | None
    quality_change: Interval | None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A family the router never saw, at each weights: gain over the static strategy best in training."""

    family: str
    questions: int
    gains: tuple[tuple[float, float, Gain], ...]
    mean_gain: Interval


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the cost-quality frontier."""

    token_weight: float
    latency_weight: float
    quality: float
    tokens: float
    latency_ms: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures that the first line is about.

    Attributes:
        weights: how many were compared. beaten, worse: at how many the router is shown better, or worse, than
            the static strategy best in training; worse_than_hindsight: than that best on the test questions.
        gap_closed_mean: mean over weights with a gap. gap_closed_total: sum of gains / sum of gaps.
        reach_closed: sum of the router's gains / sum of what was reachable, over weights where there was something.
        verdicts: at how many weights the router gained, there was nothing to win, it was not learned, or the
            questions are too few to tell.
        mean_utility: by contender, over the weights. mean_gain: router minus contender, over the weights.
    """

    weights: int
    beaten: int
    worse: int
    worse_than_hindsight: int
    gap_closed_mean: float | None
    gap_closed_total: float | None
    reach_closed: float | None
    verdicts: dict[str, int]
    mean_utility: dict[str, float]
    mean_gain: dict[str, Interval]
    first_line: str


@dataclass(frozen=True, slots=True)
class Signal:
    """How well one feature alone tells something, in one data set (or "all").

    Attributes:
        known: questions for which it was measured.
        draft_right, retrieval_helps, reasoning_helps: area under the ROC curve for: Direct scores at least .5;
            RAG scores above Direct; RAG+CoT scores above RAG (CoT above Direct without retrieval). Above .5: larger
            values say yes; None with fewer than five questions on either side.
    """

    family: str
    feature: str
    group: str
    source: str
    known: int
    draft_right: float | None
    retrieval_helps: float | None
    reasoning_helps: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A router compared with every static strategy and baseline.

    Attributes:
        protocol: how questions were split, seeds, scale, and what each baseline is.
        dropped: what could not be done, each with its reason.
        failed: splits that could not be fitted, with the reason; their questions are not in any figure.
        repeated_texts: questions whose text another before them has: equal texts share a fold and are drawn together
            in every interval.
        trained_on_these: test questions that were training questions too: figures are too good if any.
    """

    questions: int
    trained_on_these: int
    repeated_texts: int
    families: dict[str, int]
    source: dict[str, Any]
    protocol: dict[str, Any]
    dropped: tuple[str, ...]
    failed: tuple[str, ...]
    summary: Summary
    weights: tuple[AtWeights, ...]
    savings: tuple[Saving, ...]
    left_out: tuple[LeftOut, ...]
    frontier: dict[str, tuple[Point, ...]]
    calibration: tuple[dict[str, Any], ...]
    signals: tuple[Signal, ...]
