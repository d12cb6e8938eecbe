"""Adds features that need no language model to a recorded profile: of questions, passages and recorded answers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from apportion.core.progress import progress
from apportion.route.ask.evidence import JUDGED, answer_features
from apportion.route.ask.features import group_of
from apportion.route.ask.probes import features_of_hits, question_features
from apportion.route.ask.setup import DEFAULT_K
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.index.bm25 import Retriever
from apportion.route.profile.profile import Profile


def add_probes(profile: Profile, index: Path | None) -> Profile:
    """The profile with question features, and with those of passages and answers where an index is given.

    Features that are already there are kept as they were recorded. The passages are the k that the profile was
    made with (the default where it does not say). Without an index, and without recorded retrieval features,
    `dropped` says that there are none.

    Raises:
        ArtifactError: the index is not there or not complete.
    """
    from apportion.route.index.bm25 import Bm25Index

    opened = Bm25Index.open(index) if index else None
    found: list[Mapping[str, float]] = []
    with progress("probes", profile.n, "questions") as advance:
        for row in range(profile.n):
            searched = _searched(profile, row, opened) if opened else {}
            found.append({**question_features(profile.question[row]), **searched})
            advance()
    names = tuple(dict.fromkeys(name for one in found for name in one))
    new = tuple(name for name in names if name not in profile.feature_names)
    values = np.array([[one.get(name, np.nan) for name in new] for one in found]).reshape(profile.n, len(new))
    lacking = opened is None and not any(group_of(name) == "retrieval" for name in profile.feature_names)
    said = ("retrieval features: no index was given",) if lacking else ()
    return replace(profile.with_features(new, values), dropped=(*profile.dropped, *said))


def _searched(profile: Profile, row: int, index: Retriever) -> dict[str, float]:
    """Features of what a question finds, and of its recorded answers beside that."""
    question = profile.question[row]
    hits = index.search(question, profile.source.k or DEFAULT_K)
    found = features_of_hits(hits, question)
    for strategy, prefix in JUDGED.items() if profile.answers else ():
        column = STRATEGIES.index(strategy)
        if np.isfinite(profile.quality[row, column]):
            found |= answer_features(prefix, profile.answers[row][column], question, hits.passages)
    return found
