"""The last choice of `auto`, as the command makes it: its best few plans meet on windows that no search has seen.

A search looks at its own windows so often that its best plan owes a part of its lead to luck there. [ours]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from apportion.bits.finalists import Judges, judges_for
from apportion.bits.game import Assignment, MeasuredGame
from apportion.bits.plan import Found
from apportion.bits.quantizer import Quantizer
from apportion.core.log import AppendLog
from apportion.models.text import Windows

FINALISTS = 3  # of each budget, and the best uniform plan


@dataclass(frozen=True)
class Elsewhere:
    """Windows to choose on, and the model as plans are written.

    Attributes:
        log: where values are appended as they are measured.
    """

    judging: Quantizer
    judges: Judges
    log: Path

    @classmethod
    def of(cls, quantizer: Quantizer, judging: Quantizer, used: Windows, log: Path) -> "Elsewhere":
        """Other windows of the text that the values were measured on.

        Args:
            quantizer: as values are measured. judging: as plans are written. used: windows that values are of.
        """
        return cls(judging, judges_for(quantizer, used), log)

    def choose(self, found: Sequence[Found]) -> list[Assignment]:
        """The finalist of least loss for every budget.

        Cost: every distinct finalist once on the judges' windows.
        """
        finals = [finalists(item) for item in found]
        plans = list(dict.fromkeys(plan for few in finals for plan in few))
        windows = self.judges.windows
        settings = self.judging.settings(windows)
        with AppendLog(self.log, settings, resume=True) as log:
            teacher = partial(self.judging.teacher, windows.windows)
            values = MeasuredGame(self.judging.bank, windows, log, settings, teacher).values(plans)
        loss = dict(zip(plans, np.mean(values, axis=1).tolist(), strict=True))
        return [min(few, key=loss.__getitem__) for few in finals]


def finalists(found: Found) -> list[Assignment]:
    """The best plans of one budget, the search's own first, and the best uniform one."""
    best = [item for item, _ in found.tried[:FINALISTS]]
    return list(dict.fromkeys([found.assignment, *best, *found.uniform[:1]]))
