"""A lesson -> the second decision: ridge regression on what can be known once the RAG answer is there."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from apportion.route.ask.features import WORD_PREFIX, group_of
from apportion.route.ask.strategy import RAG, RAG_COT
from apportion.route.profile.profile import Profile
from apportion.route.router.lesson import Lesson
from apportion.route.router.linear import best_penalty, held_out, held_out_error, ridge
from apportion.route.router.reader import Reader
from apportion.route.router.second import Second


@dataclass(frozen=True, slots=True)
class SecondLearned:
    """A second decision and what it decides at every node for questions it did not see."""

    second: Second
    reasons: Bool[ndarray, "n t l"]
    error: float
    variance: float


def can_look(profile: Profile) -> bool:
    """Whether there is a second decision to learn: RAG and RAG+CoT recorded, and features of the answer."""
    has_answers = any(group_of(name) == "answer" for name in profile.feature_names)
    return has_answers and {"rag", "rag+cot"} <= set(profile.strategies)


def learn_second(lesson: Lesson) -> SecondLearned:
    """The best by held-out squared error of the sets of features it may read, and its held-out decisions."""
    targets = _changes(lesson)
    readers = [Reader.of(lesson.profile, names) for names in _choices(lesson.profile)]
    tried = []
    for reader in readers:
        read = reader.read(lesson.profile)
        penalty = best_penalty(read, targets[:, :1], lesson.held)
        tried.append((held_out_error(read, targets[:, :1], lesson.held, penalty), penalty, reader))
    error, penalty, reader = min(tried, key=lambda one: one[0])
    read = reader.read(lesson.profile)
    means, slopes = ridge(read, targets, penalty)
    unseen = held_out(read, targets, lesson.held, penalty)
    reasons = [unseen @ np.array([1.0, -w.token, -w.latency]) > 0 for w in lesson.nodes]
    return SecondLearned(
        Second(reader, means, slopes.T),
        np.stack(reasons, axis=1).reshape(lesson.profile.n, *lesson.shape),
        error,
        float(targets[:, 0].var()),
    )


def _changes(lesson: Lesson) -> Float[ndarray, "n 3"]:
    """[n, 3] what RAG+CoT after RAG adds to RAG alone: quality, scaled tokens, scaled latency."""
    looked = lesson.costed((), look=True)
    parts = (looked.quality, looked.tokens, looked.latency)
    return np.stack([part[:, RAG_COT] - part[:, RAG] for part in parts], axis=1)


def _choices(profile: Profile) -> list[tuple[str, ...]]:
    """Sets of features, each holding the one before it: the answer; and the question; and the search."""
    kept: list[tuple[str, ...]] = []
    for groups in ({"answer"}, {"answer", "question"}, {"answer", "question", "retrieval"}):
        names = tuple(
            name for name in profile.feature_names if group_of(name) in groups and not name.startswith(WORD_PREFIX)
        )
        if names not in kept:
            kept.append(names)
    return kept
