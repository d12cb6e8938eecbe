"""How well each feature alone tells what a router needs to know: areas under ROC curves, set by set."""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from apportion.route.ask.features import FEATURES, WORD_PREFIX, group_of
from apportion.route.ask.strategy import COT, DIRECT, RAG, RAG_COT
from apportion.route.evaluation.evaluation import Signal
from apportion.route.profile.profile import Profile

FEWEST = 5  # questions on either side


def signals(profile: Profile) -> tuple[Signal, ...]:
    """Every feature but hashed words, over all questions and in each data set (where there are several).

    Cost: a sort per feature and set.
    """
    names = np.array(profile.dataset)
    groups = {"all": np.ones(profile.n, dtype=bool)}
    if len(set(profile.dataset)) > 1:
        groups |= {str(name): names == name for name in np.unique(names)}
    shown = [name for name in profile.feature_names if not name.startswith(WORD_PREFIX)]
    parts = {family: profile.select(rows) for family, rows in groups.items()}
    return tuple(_signal(family, name, part) for family, part in parts.items() for name in shown)


def _signal(family: str, name: str, profile: Profile) -> Signal:
    values = profile.keep_features((name,)).features[:, 0]
    quality, has = profile.quality, set(profile.columns)
    draft = quality[:, DIRECT] >= 0.5 if DIRECT in has else None
    retrieval = quality[:, RAG] > quality[:, DIRECT] if {DIRECT, RAG} <= has else None
    reasoning = None
    for with_it, without in ((RAG_COT, RAG), (COT, DIRECT)):
        if reasoning is None and {with_it, without} <= has:
            reasoning = quality[:, with_it] > quality[:, without]
    return Signal(
        family=family,
        feature=name,
        group=group_of(name),
        source=FEATURES[name].source if name in FEATURES else "",
        known=int(np.isfinite(values).sum()),
        draft_right=_area(values, draft),
        retrieval_helps=_area(values, retrieval),
        reasoning_helps=_area(values, reasoning),
    )


def _area(values: Float[ndarray, " n"], positive: Bool[ndarray, " n"] | None) -> float | None:
    if positive is None:
        return None
    known = np.isfinite(values)
    return auroc(values[known], positive[known])


def auroc(values: Float[ndarray, " n"], positive: Bool[ndarray, " n"]) -> float | None:
    """Probability that a positive's value is above a negative's, ties counting half; None with too few of either.

    >>> auroc(np.arange(10.0), np.arange(10) >= 5)
    1.0
    """
    many = int(positive.sum())
    if min(many, len(positive) - many) < FEWEST:
        return None
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # mean rank of equals, from 1
    return float((ranks[positive].sum() - many * (many + 1) / 2) / (many * (len(positive) - many)))
