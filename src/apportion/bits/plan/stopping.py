"""Sampling that stops by itself: when further permutations no longer change the plans.

Criterion: the plans at all budgets asked about are the same after each of PATIENCE batches in a row. [ours]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from apportion.bits.game import Assignment, Samples
from apportion.bits.plan.allocate import allocate
from apportion.bits.plan.budget import Budget
from apportion.bits.plan.sensitivity import Sensitivity

PATIENCE = 3
SOLVER_SECONDS = 5.0  # for each plan of a look; the plan that is kept has more


@dataclass
class PlansStable:
    """Called with the samples after every batch; true when sampling may stop.

    Attributes:
        estimator: samples -> sensitivity. budgets: where plans are compared.
        unchanged: looks in a row at which no plan changed. changes: for each look, how many plans did.
    """

    estimator: Callable[[Samples], Sensitivity]
    budgets: Sequence[Budget]
    unchanged: int = 0
    changes: list[int] = field(default_factory=list)
    _last: list[Assignment] = field(default_factory=list)

    def __call__(self, samples: Samples) -> bool:
        sensitivity = self.estimator(samples)
        plans = [allocate(sensitivity, budget, seconds=SOLVER_SECONDS).assignment for budget in self.budgets]
        if self._last:
            self.changes.append(sum(one != other for one, other in zip(plans, self._last, strict=True)))
            self.unchanged = 0 if self.changes[-1] else self.unchanged + 1
        self._last = plans
        return self.unchanged >= PATIENCE
