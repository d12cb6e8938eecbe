"""A causal language model as both halves, the server and the demo load it: one loader, one set of safety rules.

    load_model("folder or hub name or model.gguf", placement)    -> Loaded: a transformers model and its tokenizer
    load_staged(...), load_full(...)                             -> StagedModel: embed -> blocks -> head
    windows_of(text, tokenizer, tokens)                          -> token windows of a text

These names are what the package offers, loaded when they are first used; its other modules are its own business, but
for `identity` (which model a folder holds), `mixture`, `staged` and `text`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Layout": "structure",
    "Loaded": "load",
    "Origin": "origin",
    "StagedModel": "staged",
    "Windows": "text",
    "load_full": "load",
    "load_model": "load",
    "load_staged": "load",
    "load_tokenizer": "pretrained",
    "model_identity": "identity",
    "source_identity": "identity",
    "windows_of": "text",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'apportion.models' has no attribute {name!r}")
    return getattr(import_module(f"apportion.models.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
