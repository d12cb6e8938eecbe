"""Adds features that need no language model to a recorded profile: question and retrieval probes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from apportion.core.progress import progress
from apportion.route.profile.profile import Profile


def add_probes(profile: Profile, index: Path | None) -> Profile:
    """The profile with question features, and with retrieval features where an index is given.

    Features that are already there are kept as they were recorded. Without an index, and without recorded
    retrieval features, `dropped` says that there are none.

    Raises:
        ArtifactError: the index is not there or not complete.
    """
    from apportion.route.ask.probes import features_of_hits, question_features
    from apportion.route.index.bm25 import Bm25Index

    found: list[Mapping[str, float]] = [question_features(text) for text in profile.question]
    if index is not None:
        opened = Bm25Index.open(index)
        with progress("probes", profile.n, "questions") as advance:
            for i, text in enumerate(profile.question):
                found[i] = {**found[i], **features_of_hits(opened.search(text, 1))}
                advance()
    names = tuple(dict.fromkeys(name for one in found for name in one))
    new = tuple(name for name in names if name not in profile.feature_names)
    values = np.array([[one.get(name, np.nan) for name in new] for one in found]).reshape(profile.n, len(new))
    said = () if index or _has_retrieval(profile) else ("retrieval features: no index was given",)
    return replace(profile.with_features(new, values), dropped=(*profile.dropped, *said))


def _has_retrieval(profile: Profile) -> bool:
    return any(name.startswith(("nqc_", "score_")) for name in profile.feature_names)
