"""Rounding: weights to codes and back, one algorithm per file, one protocol."""

from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.protocol import Rounded, Rounding, shape_bytes
from apportion.bits.rounding.registry import ROUNDINGS, rounding_named

__all__ = ["ROUNDINGS", "Moments", "Rounded", "Rounding", "rounding_named", "shape_bytes"]
