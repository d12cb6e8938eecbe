"""Rounding: weights to codes, one algorithm per file, one protocol."""

from apportion.bits.rounding.linears import round_all, round_plan
from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.protocol import Rounding
from apportion.bits.rounding.registry import ROUNDINGS, rounding_named
from apportion.bits.rounding.tuning import Lesson, Tuned, lesson_of, require_tunable, require_windows, tune

__all__ = [
    "ROUNDINGS",
    "Lesson",
    "Moments",
    "Rounding",
    "Tuned",
    "lesson_of",
    "require_tunable",
    "require_windows",
    "round_all",
    "round_plan",
    "rounding_named",
    "tune",
]
