"""Apportion fits a language model into the memory you have, and spends retrieval and reasoning only where needed.

    checkpoint -> Game -> Samples -> Sensitivity -> Plan -> quantized checkpoint      apportion.bits
    questions  -> Profile -> Router -> Decision -> Answer                             apportion.route

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ApportionError": "core.errors",
    "Bm25Index": "route.retrieve",
    "Plan": "bits.plan",
    "Quantization": "bits.quantize",
    "Router": "route.router",
    "Samples": "bits.samples",
    "Sampling": "bits.sampling",
    "Sensitivity": "bits.sensitivity",
    "allocate": "bits.allocate",
    "answer": "route.answer",
    "apply": "bits.apply",
    "budget_from_bits": "bits.budget",
    "budget_from_bytes": "bits.budget",
    "estimate": "bits.sensitivity",
    "load": "bits.load",
    "open_table": "bits.quantize",
    "perplexity": "bits.evaluate",
    "quantize": "bits.quantize",
    "take_samples": "bits.sample",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'apportion' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(import_module(f"apportion.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
