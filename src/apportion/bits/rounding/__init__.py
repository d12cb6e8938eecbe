"""Rounding: weights to codes, one algorithm per file, one protocol."""

from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.protocol import Rounding
from apportion.bits.rounding.registry import ROUNDINGS, rounding_named

__all__ = ["ROUNDINGS", "Moments", "Rounding", "rounding_named"]
