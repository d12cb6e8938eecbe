"""Questions to folds: each fold holds its share of every dataset."""

import numpy as np

from apportion.core.errors import InputError
from apportion.core.seeds import stream
from apportion.route.router.utility import Ints


def split_folds(dataset: tuple[str, ...], folds: int, seed: int) -> list[Ints]:
    """Row numbers of each fold, ascending; sizes differ by at most one.

    Raises:
        InputError: fewer than 2 folds, or fewer than 4 questions a fold.
    """
    n = len(dataset)
    if not 2 <= folds <= n // 4:
        raise InputError(
            f"folds {folds} of {n} questions: expected at least 2 folds of at least 4 questions",
            "use fewer folds or profile more questions",
        )
    order = stream(seed, "folds", folds).permutation(n)
    by_dataset = order[np.argsort(np.array(dataset)[order], kind="stable")]
    return [np.sort(by_dataset[fold::folds]) for fold in range(folds)]


def others(rows: Ints, n: int) -> Ints:
    """The rows of n that are not among these."""
    return np.setdiff1d(np.arange(n), rows)
