"""Evidence: every method and baseline on one model, judged on held-out text. Nothing here is needed to quantize."""

from apportion.bits.compare.compare import CompareRequest, compare
from apportion.bits.compare.methods import METHODS

__all__ = ["METHODS", "CompareRequest", "compare"]
