"""Which tensor of a checkpoint folder each parameter of the loaded model is.

A class may call its parameters otherwise than the file does (a wrapper's `language_model.model.layers` is
`model.language_model.layers` inside), or hold several of the file's tensors as one (the experts of a block). What is
written back is written under the file's names, so the two must be told apart. Whether a parameter really is the tensor
that its name says is compared by shape and bytes later, in `origin`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Names:
    """Where a model's parameters come from.

    Attributes:
        single: the file's tensor of each parameter that is one of them.
        merged: the file's tensors of each parameter that was made of several, in the file's order.
        unknown: the file's tensors that the class has no place for.
    """

    single: Mapping[str, str]
    merged: Mapping[str, tuple[str, ...]]
    unknown: tuple[str, ...]


def names_of(model: Any, stored: Iterable[str]) -> Names:
    """Match the file's names to the model's, as transformers did when it loaded them.

    Args:
        model: a transformers model. stored: names of the tensors in the file.
    """
    own = set(model.state_dict())
    single: dict[str, str] = {}
    merged: dict[str, list[str]] = {}
    unknown: list[str] = []
    for name, (target, converted) in renamed(model, list(stored)).items():
        if target not in own:
            unknown.append(name)
        elif converted:
            merged.setdefault(target, []).append(name)
        else:
            single[target] = name
    return Names(single, {key: tuple(value) for key, value in merged.items()}, tuple(unknown))


def renamed(model: Any, stored: list[str]) -> dict[str, tuple[str, bool]]:
    """The parameter that each of the file's tensors went into, and whether it was converted on the way."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key
    except ImportError:  # another transformers: names are taken as they are, and checked by shape and bytes
        return {name: (name, False) for name in stored}
    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    own = model.state_dict()
    found: dict[str, tuple[str, bool]] = {}
    for name in stored:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        found[name] = (target, pattern is not None)
    return found
