"""Questions to folds: each fold holds its share of every dataset, and a question that repeats is in one of them."""

from collections import Counter

import numpy as np

from apportion.core.errors import InputError
from apportion.core.seeds import stream
from apportion.route.router.utility import Ints


def split_folds(dataset: tuple[str, ...], folds: int, seed: int, groups: Ints | None = None) -> list[Ints]:
    """Row numbers of each fold, ascending; sizes differ by at most the largest group.

    Args:
        groups: [n] number of the different question that each row asks (`Profile.groups`); rows of one stay
            together. Without it each row is a question of its own.

    Raises:
        InputError: fewer than 2 folds, or fewer than 4 different questions a fold.
    """
    n = len(dataset)
    asks = np.arange(n) if groups is None else groups
    different = len(np.unique(asks))
    if not 2 <= folds <= different // 4:
        which = "questions" if different == n else "different questions"
        raise InputError(
            f"folds {folds} of {different} {which}: expected at least 2 folds of at least 4 {which}",
            "use fewer folds or profile more questions",
        )
    order = stream(seed, "folds", folds).permutation(n)
    by_dataset = order[np.argsort(np.array(dataset)[order], kind="stable")]
    sizes, fold_of = [0] * folds, dict[int, int]()
    for ask, size in Counter(asks[by_dataset].tolist()).items():
        fold_of[ask] = sizes.index(min(sizes))
        sizes[fold_of[ask]] += size
    placed = np.array([fold_of[ask] for ask in asks.tolist()])
    return [np.flatnonzero(placed == fold) for fold in range(folds)]


def others(rows: Ints, n: int) -> Ints:
    """The rows of n that are not among these."""
    return np.setdiff1d(np.arange(n), rows)
