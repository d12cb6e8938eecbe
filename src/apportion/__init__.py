"""Apportion fits a language model into the memory you have, and spends retrieval and reasoning only where needed.

    checkpoint -> Game -> Samples -> Sensitivity -> Plan -> quantized checkpoint      apportion.bits
    questions  -> Profile -> Router -> Decision -> Answer                             apportion.route

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ApportionError": "core.errors",
    "Bm25Index": "route.index",
    "CompareRequest": "bits.compare",
    "LLMSettings": "route.llm",
    "Plan": "bits.plan",
    "QuantizeRequest": "bits.quantize",
    "Quantizer": "bits.quantizer",
    "Recipe": "bits.recipe",
    "Router": "route.router",
    "Samples": "bits.game",
    "Sensitivity": "bits.plan",
    "Setup": "route.ask",
    "Share": "models.mixture",
    "Weights": "route.router",
    "allocate": "bits.plan",
    "answer": "route.answer",
    "apply": "bits.apply",
    "budget_from_bits": "bits.plan",
    "budget_from_bytes": "bits.plan",
    "build_index": "route.index",
    "compare": "bits.compare",
    "connect": "route.llm",
    "estimate": "bits.plan",
    "evaluate_router": "route.evaluation",
    "load": "models.load",
    "load_prompts": "route.ask",
    "load_router": "route.router",
    "open_model": "bits.quantize",
    "perplexity": "bits.perplexity",
    "quantize": "bits.quantize",
    "read_corpus": "route.index",
    "read_profile": "route.profile",
    "read_questions": "route.profile",
    "run_profile": "route.profile",
    "take_samples": "bits.quantizer",
    "train_router": "route.router",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'apportion' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(import_module(f"apportion.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
