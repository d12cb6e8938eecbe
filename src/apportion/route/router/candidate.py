"""A way to decide, fitted, with what it decided for questions it did not see: what gates choose among."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from apportion.core.seeds import derived_seed
from apportion.route.ask.features import WORD_PREFIX, group_of, is_draft
from apportion.route.ask.strategy import RAG, RAG_COT, USES_RAG
from apportion.route.router.calibration import Calibration, calibrate_pooled
from apportion.route.router.decider import Constant, Decider, allowed
from apportion.route.router.draft import Drafted
from apportion.route.router.folds import others
from apportion.route.router.forest import fit_forest
from apportion.route.router.learn_second import SecondLearned
from apportion.route.router.lesson import Lesson
from apportion.route.router.linear import best_penalty, fit_linear, held_out, outcomes
from apportion.route.router.members import Said, fit_all, own_checks
from apportion.route.router.reader import Reader
from apportion.route.router.stump import fit_stump
from apportion.route.router.utility import Costed, Weights, utility

FULL, LEAN, ASKING, LOOK = "full", "lean", "asking", "+look"
Unseen = Callable[[Weights], Said]


@dataclass(frozen=True, slots=True)
class Fit:
    """How a candidate came about.

    Attributes:
        stopped_at, checks, regret: of a network: the step it was stopped at, the steps at which it could have
            been, and the held-out regret there. penalty: of a linear decider.
    """

    stopped_at: int | None = None
    checks: tuple[int, ...] = ()
    regret: tuple[float, ...] = ()
    penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A decider and what it would have done.

    Attributes:
        columns: chosen without a draft, at every node, for questions not seen. got: the utility of that, or
            of drafting first where it asks for that.
        looks: whether a retrieved answer is looked at before reasoning.
    """

    name: str
    decider: Decider
    columns: Int[ndarray, "n t l"]
    got: Float[ndarray, "n t l"]
    calibration: tuple[Calibration, ...] = ()
    fit: Fit = Fit()
    looks: bool = False


def network(name: str, names: tuple[str, ...], lesson: Lesson, drafted: Drafted | None = None) -> Candidate:
    """The dual-head network on these features; with `drafted` it also asks, question by question, for a draft."""
    members = fit_all(lesson, names, drafted)
    regrets = members.regrets()
    own, stop = own_checks(regrets), int(regrets.mean(axis=1).argmin())
    steps = members.fitted.steps
    fit = Fit(steps[stop], steps, tuple(regrets.mean(axis=1).tolist()))
    found = _judged(name, members.policy(stop), lambda w: members.said(w, own), lesson, members.costed, drafted)
    return replace(found, fit=fit)


def linear(name: str, names: tuple[str, ...], lesson: Lesson) -> Candidate:
    """Ridge regression of quality and costs on these features; the penalty suits held-out differences of quality."""
    costed, reader = lesson.costed(names), Reader.of(lesson.profile, names)
    read, targets = reader.read(lesson.profile), outcomes(costed)
    quality = targets[:, 0][:, list(costed.columns)]
    penalty = best_penalty(read, quality - quality.mean(axis=1, keepdims=True), lesson.held)
    flat = held_out(read, targets.reshape(len(read), -1), lesson.held, penalty).reshape(-1, 3, 4)

    def unseen(weights: Weights) -> Said:
        scores = flat[:, 0] - weights.token * flat[:, 1] - weights.latency * flat[:, 2]
        return Said(allowed(scores, costed.columns))

    found = _judged(name, fit_linear(reader, read, costed, penalty), unseen, lesson, costed)
    return replace(found, fit=Fit(penalty=penalty))


def stump(name: str, names: tuple[str, ...], lesson: Lesson) -> Candidate:
    """The best rule of one threshold on one of these features."""
    costed, reader = lesson.costed(names), Reader.of(lesson.profile, names)
    read, n = reader.read(lesson.profile), lesson.profile.n
    seen = [others(rows, n) for rows in lesson.held]
    parts = [fit_stump(reader, read[rows], costed.select(rows)) for rows in seen]

    def unseen(weights: Weights) -> Said:
        scores = np.zeros((n, 4))
        for rows, part in zip(lesson.held, parts, strict=True):
            scores[rows] = part.scores(read[rows], weights)
        return Said(scores)

    return _judged(name, fit_stump(reader, read, costed), unseen, lesson, costed)


def forest(name: str, names: tuple[str, ...], lesson: Lesson) -> Candidate:
    """Shallow trees that predict quality and costs from these features."""
    costed, reader = lesson.costed(names), Reader.of(lesson.profile, names)
    read, n, seed = reader.read(lesson.profile), lesson.profile.n, derived_seed(lesson.seed, "forest") % 2**31
    seen = [others(rows, n) for rows in lesson.held]
    parts = [fit_forest(reader, read[rows], costed.select(rows), seed) for rows in seen]

    def unseen(weights: Weights) -> Said:
        scores = np.zeros((n, 4))
        for rows, part in zip(lesson.held, parts, strict=True):
            scores[rows] = part.scores(read[rows], weights)
        return Said(scores)

    return _judged(name, fit_forest(reader, read, costed, seed), unseen, lesson, costed)


def constant(column: int, lesson: Lesson, name: str) -> Candidate:
    """Always one strategy: something for a second decision to start from."""
    decider = Constant(column, lesson.plain.columns)
    empty = np.zeros((lesson.profile.n, 0))
    found = _judged(name, decider, lambda w: Said(decider.scores(empty, w)), lesson, lesson.plain)
    return replace(found, calibration=())


def looking(base: Candidate, learned: SecondLearned, lesson: Lesson) -> Candidate:
    """The same decider, but where it retrieves the RAG answer comes first and the second decision follows."""
    names = base.decider.reader.names
    looked = np.array(USES_RAG)[base.columns]
    columns = np.where(looked, np.where(learned.reasons, RAG_COT, RAG), base.columns)
    after = _looked_up(lesson, lesson.costed(names, look=True), columns)
    return replace(base, name=base.name + LOOK, columns=columns, got=np.where(looked, after, base.got), looks=True)


def _judged(
    name: str, decider: Decider, unseen: Unseen, lesson: Lesson, costed: Costed, drafted: Drafted | None = None
) -> Candidate:
    """What a decider's held-out scores choose and get at every node, and the calibration of its heads."""
    said = [unseen(weights) for weights in lesson.nodes]
    chosen = np.stack([one.scores.argmax(axis=1) for one in said], axis=1).reshape(lesson.profile.n, *lesson.shape)
    got = _looked_up(lesson, costed, chosen)
    if drafted is not None:
        later = np.stack([drafted.utility(weights) for weights in lesson.nodes], axis=1).reshape(got.shape)
        asks = np.stack([one.asks for one in said if one.asks is not None], axis=1)
        got = np.where(asks.reshape(got.shape), later, got)
    return Candidate(name, decider, chosen, got, calibrate_pooled(lambda weights: unseen(weights).scores, costed))


def _looked_up(lesson: Lesson, costed: Costed, columns: Int[ndarray, "n t l"]) -> Float[ndarray, "n t l"]:
    """Utilities of the columns chosen at every node."""
    flat, rows = columns.reshape(len(columns), -1), np.arange(len(columns))
    values = [utility(costed, weights)[rows, flat[:, i]] for i, weights in enumerate(lesson.nodes)]
    return np.stack(values, axis=1).reshape(columns.shape)


def feature_sets(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The features that each way to decide may read, by its name; sets that add nothing are left out.

    Networks read everything before the first decision but hashed words; the cheap rules read less.
    """
    first = tuple(name for name in names if group_of(name) != "answer")
    plain = tuple(name for name in first if not name.startswith(WORD_PREFIX))
    asked = tuple(name for name in plain if group_of(name) == "question")
    lean = tuple(name for name in plain if not is_draft(name))
    words = tuple(name for name in first if group_of(name) == "question")
    found = {
        FULL: plain if len(plain) > len(lean) else (),
        LEAN: lean,
        "rule": asked,
        "linear_question": asked,
        "linear_words": words if len(words) > len(asked) else (),
        "linear_lean": lean if len(lean) > len(asked) else (),
        "linear_full": plain if len(plain) > len(lean) else (),
        "forest_question": asked,
        "forest_lean": lean if len(lean) > len(asked) else (),
    }
    return {name: kept for name, kept in found.items() if kept}
