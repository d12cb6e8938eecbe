"""Recipes small enough for the tiny models of tests."""

from typing import Any

from apportion.bits.recipe import Recipe
from apportion.models.mixture import Calibration


def small(text: Calibration, **changes: Any) -> Recipe:
    """A few windows of a text, rounded to nearest; with anything else that a test is about."""
    given = {"windows": 4, "window_tokens": 24, "permutations": 4, "group_size": 32, "rounding": "nearest"}
    return Recipe(calibration=text, **{**given, **changes})
