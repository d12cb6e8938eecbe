"""What there was to win at some weights: "nothing to win" and "not learned" are different answers."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from numpy import ndarray

from apportion.core.bootstrap import Bootstrap
from apportion.route.evaluation.evaluation import BETTER, GAINED, NOT_LEARNED, NOTHING, TOO_FEW, Gain, Reach

LEARNED = (
    *("by_dataset", "logistic", "knn", "query_length", "router", "router_ungated", "one_decision", "escalating"),
    *("without_nll", "without_nqc", "without_weights", "need_rag_only", "need_cot_only"),
)
NEGLIGIBLE = 0.01  # of a point of quality
BOTH_SIDES = 1.96 + 0.84  # normal quantiles of a two-sided 5 % test with a power of 80 %
Values = Float[ndarray, " n"]


def reach(values: Mapping[str, Values], gain: Gain, bootstrap: Bootstrap) -> Reach:
    """The verdict at some weights.

    Args:
        values: utilities of all who played; "best_static" among them.
        gain: of the router over the best static strategy.
    """
    static = values["best_static"]
    known = [name for name in LEARNED if name in values]
    by = max(known, key=lambda name: float(values[name].mean()))
    difference = values[by] - static
    interval = bootstrap.interval(difference)
    again = values.get("oracle_repeated")
    repeated = None if again is None else bootstrap.interval(again - static)
    most = interval.high if repeated is None else min(interval.high, repeated.high)
    if gain.verdict == BETTER:
        verdict = GAINED
    elif interval.low > 0:
        verdict = NOT_LEARNED
    else:
        verdict = NOTHING if most < NEGLIGIBLE else TOO_FEW
    closed = gain.interval.mean / interval.mean if interval.mean > 1e-9 else None
    return Reach(by, interval, repeated, closed, questions_needed(difference), verdict)


def questions_needed(difference: Values) -> int | None:
    """Questions that show a mean difference as large and as variable as this one; None where it is not above 0.

    Source: the normal approximation for a two-sided test at 5 % with a power of 80 %.

    >>> import numpy as np
    >>> questions_needed(np.array([1.0, 0.0] * 50))
    8
    """
    mean, spread = float(difference.mean()), float(difference.std())
    if mean <= 1e-9:
        return None
    return max(2, math.ceil((BOTH_SIDES * spread / mean) ** 2))
