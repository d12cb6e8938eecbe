"""Rounding: weights to codes, one algorithm per file, one protocol."""

from apportion.bits.rounding.choice import Choice, best_affordable, step_seconds
from apportion.bits.rounding.lesson import (
    BATCH_TOKENS,
    FULL_PRECISION,
    Lesson,
    full_precision_hidden,
    lesson_of,
    require_windows,
)
from apportion.bits.rounding.linears import round_all, round_plan
from apportion.bits.rounding.looks import Tuned
from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.protocol import Rounding
from apportion.bits.rounding.registry import ROUNDINGS, rounding_named
from apportion.bits.rounding.sequential import IN_SEQUENCE
from apportion.bits.rounding.tuning import TUNING, require_tunable, tune

__all__ = [
    "BATCH_TOKENS",
    "FULL_PRECISION",
    "IN_SEQUENCE",
    "ROUNDINGS",
    "TUNING",
    "Choice",
    "Lesson",
    "Moments",
    "Rounding",
    "Tuned",
    "best_affordable",
    "full_precision_hidden",
    "lesson_of",
    "require_tunable",
    "require_windows",
    "round_all",
    "round_plan",
    "rounding_named",
    "step_seconds",
    "tune",
]
