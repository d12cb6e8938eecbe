"""A profile: what every strategy answered, and cost, for every question. A value; measuring it is elsewhere.

Conventions that makers of profiles keep, and utilities rely on:

- The draft probe *is* the Direct answer: its tokens and latency are those of the `direct` outcome.
- `latency_ms` of `rag` and `rag+cot` includes the search; `retrieval_ms` is that search alone (optional).
- Features belong to a question, not to a strategy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from apportion.core.arrays import NDArray
from apportion.core.artifact import digest_of
from apportion.core.errors import InputError
from apportion.route.ask.source import ProfileSource
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.texts import groups_of, same_text

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answered (or failed) question under one strategy: a row of the file.

    Attributes:
        f1, em: quality in [0, 1]; None when the row failed.
        latency_ms, draft_nll, retrieval_ms: None when not measured (nats per token for the NLL).
        cached_tokens: prompt tokens that the server had cached already; None when it does not say.
        latency_measured: False when the latency is an estimate from others measured alone. loaded_ms: what was
            measured while other calls ran.
        completion_measured: False when the completion tokens are an estimate.
        completion: all that the model showed. finish, rule: how it ended, and how the answer was found in it.
        again: what was said when the answer was asked for once more (`ask.answered`); tokens and latency are of both.
        kind: of the question, which its prompt was for. asked_as: another strategy than `strategy` where no
            passage was found. cut_tokens: of the prompt, to fit the context. passages: ids, best first.
        error: why the row failed; a failed row has no quality and no tokens.
        features: the question's features by name; absent or None when not measured.
    """

    dataset: str
    question_id: str
    question: str
    answers: tuple[str, ...]
    strategy: str
    answer: str = ""
    f1: float | None = None
    em: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_ms: float | None = None
    draft_nll: float | None = None
    completion_measured: bool = True
    error: str | None = None
    retrieval_ms: float | None = None
    cached_tokens: int | None = None
    latency_measured: bool | None = None
    loaded_ms: float | None = None
    completion: str | None = None
    again: str | None = None
    finish: str | None = None
    rule: str | None = None
    kind: str | None = None
    asked_as: str | None = None
    cut_tokens: int | None = None
    passages: tuple[str, ...] = ()
    features: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Profile:
    """Frozen outcomes of n questions under the four strategies, in the order of `STRATEGIES`.

    Attributes:
        dataset, ids, question: one entry per question; (dataset, id) is unique.
        quality, em: [n, 4] in [0, 1]; NaN where a strategy failed or was not recorded.
        tokens: [n, 4] prompt + completion.
        latency_ms: [n, 4], NaN where missing. retrieval_ms: [n], NaN where missing.
        features: [n, f], NaN where missing. feature_names: the f names.
        strategies: those that the choice is restricted to.
        dropped: what could not be used, each with its reason.
        completion_tokens, cached_tokens: [n, 4] the part of `tokens` that was generated, and the part that the
            server had cached (0 where it did not say); None where prompt and completion were not recorded apart.
        answers: the four answers of each question, where they were recorded.
    """

    dataset: tuple[str, ...]
    ids: tuple[str, ...]
    question: tuple[str, ...]
    quality: Floats
    em: Floats
    tokens: Floats
    latency_ms: Floats
    retrieval_ms: Floats
    features: Floats
    feature_names: tuple[str, ...]
    strategies: tuple[str, ...] = STRATEGIES
    source: ProfileSource = field(default_factory=ProfileSource)
    dropped: tuple[str, ...] = ()
    completion_tokens: Floats | None = None
    cached_tokens: Floats | None = None
    answers: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.ids)
        shapes = {
            "dataset": (len(self.dataset), n),
            "question": (len(self.question), n),
            "quality": (self.quality.shape, (n, 4)),
            "em": (self.em.shape, (n, 4)),
            "tokens": (self.tokens.shape, (n, 4)),
            "latency_ms": (self.latency_ms.shape, (n, 4)),
            "retrieval_ms": (self.retrieval_ms.shape, (n,)),
            "features": (self.features.shape, (n, len(self.feature_names))),
        }
        wrong = [f"{name}: {got}, expected {want}" for name, (got, want) in shapes.items() if got != want]
        if wrong:
            raise InputError("profile: arrays of unequal shape: " + "; ".join(wrong))
        unknown = set(self.strategies) - set(STRATEGIES)
        if unknown or not self.strategies:
            raise InputError(f"profile: strategies {self.strategies}, expected some of {STRATEGIES}")

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.ids)

    @property
    def columns(self) -> tuple[int, ...]:
        """Column numbers of the strategies that may be chosen."""
        return tuple(i for i, name in enumerate(STRATEGIES) if name in self.strategies)

    @property
    def complete(self) -> Bools:
        """[n] whether every strategy that may be chosen has quality and tokens."""
        wanted = list(self.columns)
        known: Bools = np.isfinite(self.quality[:, wanted] + self.tokens[:, wanted])
        return np.asarray(known.all(axis=1))

    @property
    def has_latency(self) -> bool:
        """Whether latency is known for every strategy of every complete question."""
        known = self.latency_ms[self.complete][:, list(self.columns)]
        return bool(known.size) and bool(np.isfinite(known).all())

    def has_cost(self, strategy: str) -> bool:
        """Whether this strategy's tokens (and latency, where latencies are known) are known of every complete question.

        Also asked of strategies that may not be chosen: a draft costs what Direct costs.
        """
        whole, column = self.complete, STRATEGIES.index(strategy)
        known = np.isfinite(self.tokens[whole, column])
        timed = np.isfinite(self.latency_ms[whole, column]) if self.has_latency else known
        return bool(known.size) and bool((known & timed).all())

    @property
    def groups(self) -> NDArray[np.int64]:
        """[n] number of the different question that each is, by its text (`texts.groups_of`)."""
        return groups_of(self.question)

    @property
    def different(self) -> int:
        """Number of different questions; less than n where texts repeat."""
        return len(set(self.groups.tolist()))

    def keys(self) -> NDArray[np.uint64]:
        """[n] 64-bit digests of dataset, id and text, by which the rows of another run are found."""
        return _digests(list(zip(self.dataset, self.ids, self.question, strict=True)))

    def text_keys(self) -> NDArray[np.uint64]:
        """[n] 64-bit digests of the text, by which a question is recognised in any file; without one, as in `keys`."""
        rows = zip(self.dataset, self.ids, self.question, strict=True)
        return _digests([same_text(row[2]) or row for row in rows])

    def select(self, rows: NDArray[np.int64] | Bools) -> "Profile":
        """The same profile with some questions only (a mask or row numbers)."""
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return replace(
            self,
            dataset=tuple(self.dataset[i] for i in numbers),
            ids=tuple(self.ids[i] for i in numbers),
            question=tuple(self.question[i] for i in numbers),
            quality=self.quality[numbers],
            em=self.em[numbers],
            tokens=self.tokens[numbers],
            latency_ms=self.latency_ms[numbers],
            retrieval_ms=self.retrieval_ms[numbers],
            features=self.features[numbers],
            completion_tokens=None if self.completion_tokens is None else self.completion_tokens[numbers],
            cached_tokens=None if self.cached_tokens is None else self.cached_tokens[numbers],
            answers=tuple(self.answers[i] for i in numbers) if self.answers else (),
        )

    def only_complete(self) -> "Profile":
        """The complete questions; how many were left out is added to `dropped`.

        Raises:
            InputError: no question has every strategy.
        """
        whole = self.complete
        if whole.all():
            return self
        if not whole.any():
            raise InputError(
                f"profile: none of {self.n} questions has all of {', '.join(self.strategies)}",
                "finish the profile (run `apportion profile` again with --resume)",
            )
        lost = f"{int((~whole).sum())} of {self.n} questions: a strategy failed or was not recorded"
        return replace(self.select(whole), dropped=(*self.dropped, lost))

    def restrict(self, strategies: tuple[str, ...]) -> "Profile":
        """The same outcomes with the choice restricted to these strategies."""
        return replace(self, strategies=tuple(s for s in STRATEGIES if s in strategies))

    def with_features(self, names: tuple[str, ...], values: Floats) -> "Profile":
        """The same profile with columns added; a name that is already there is replaced."""
        kept = [i for i, name in enumerate(self.feature_names) if name not in names]
        return replace(
            self,
            feature_names=(*(self.feature_names[i] for i in kept), *names),
            features=np.concatenate([self.features[:, kept], values], axis=1),
        )

    def keep_features(self, names: tuple[str, ...]) -> "Profile":
        """The same profile with these feature columns only, in this order.

        Raises:
            InputError: some are not there.
        """
        absent = [name for name in names if name not in self.feature_names]
        if absent:
            raise InputError(
                f"profile: features {', '.join(absent)} are missing",
                "profile again, give --index DIR, or use what was trained without them",
            )
        columns = [self.feature_names.index(name) for name in names]
        return replace(self, feature_names=names, features=self.features[:, columns])


def _digests(values: Sequence[object]) -> NDArray[np.uint64]:
    return np.array([int(digest_of(value)[:16], 16) for value in values], dtype=np.uint64)
