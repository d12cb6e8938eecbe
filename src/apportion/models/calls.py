"""How a model's own forward pass calls its blocks: what it gives them, what it takes back, what it must not hide.

Nothing here knows an architecture. What a block returns is learned by letting the model run once on two tokens; what
cannot be run block by block (state handed past the hidden states, arguments that depend on the text) is refused.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from apportion.core.device import is_out_of_memory
from apportion.core.errors import InputError, ModelStructureError, first_line

Call = tuple[tuple[Any, ...], dict[str, Any]]
Rest = tuple[Any, ...] | None
"""What a block returns after its hidden states; None where it returns them alone."""


def forward_options(model: Any) -> dict[str, Any]:
    """Options of a forward pass that this model knows: no cache, logits of the last token only."""
    known = inspect.signature(model.forward).parameters
    takes_more = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in known.values())
    found: dict[str, Any] = {"use_cache": False} if takes_more or "use_cache" in known else {}
    return {**found, "logits_to_keep": 1} if "logits_to_keep" in known else found


def returns_of(blocks: Sequence[nn.Module], run: Callable[[], object]) -> tuple[Rest, ...]:
    """What each block returns besides hidden states in one real forward pass.

    Raises:
        ModelStructureError: a block is not called once, or blocks hand each other more than hidden states.
    """
    seen: dict[int, tuple[Call, Any]] = {}
    calls = [0] * len(blocks)

    def watch(block: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            calls[block] += 1
            seen[block] = ((args, kwargs), out)

        return hook

    handles = [block.register_forward_hook(watch(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        run()
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelStructureError(
            f"the model's own forward pass fails on two tokens: {type(error).__name__}: {first_line(error)}",
            "try another version of transformers",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if calls != [1] * len(blocks):
        raise ModelStructureError(
            f"the forward pass called {sum(count > 0 for count in calls)} blocks of {len(blocks)}"
            + (", some of them more than once" if max(calls, default=0) > 1 else ""),
            "models that skip or repeat blocks are not supported",
        )
    require_stateless([call for call, _ in seen.values()])
    return tuple(tuple(out[1:]) if isinstance(out, tuple) else None for _, out in (seen[i] for i in range(len(blocks))))


def require_stateless(calls: Sequence[Call]) -> None:
    """Refuse blocks that keep something for later ones in a place that all of them are given.

    Raises:
        ModelStructureError: naming it.
    """
    for args, kwargs in calls:
        for name, value in (*enumerate(args), *kwargs.items()):
            if isinstance(value, dict | list) and any(isinstance(item, Tensor) for item in flat(value)):
                raise ModelStructureError(
                    f"its blocks hand each other more than hidden states ({name})",
                    "this model cannot be run block by block",
                )


def require_same_calls(one: Sequence[Call], other: Sequence[Call]) -> None:
    """Refuse blocks that are given something of the text itself besides hidden states: it differs between two texts.

    Raises:
        ModelStructureError: naming it.
    """
    for (args, kwargs), (others, more) in zip(one, other, strict=True):
        pairs = [*zip(range(len(args)), args, others, strict=True), *((key, kwargs[key], more[key]) for key in kwargs)]
        for name, first, second in pairs:
            if any(not torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True)):
                raise ModelStructureError(
                    f"its blocks are given something of the text besides hidden states ({name})",
                    "this model cannot be run block by block",
                )


def flat(value: Any) -> Iterator[Any]:
    """The leaves of nested dicts, lists and tuples."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield value


def tensors(value: Any) -> list[Tensor]:
    """The tensors among the leaves."""
    return [item for item in flat(value) if isinstance(item, Tensor)]


def require_tokens(model: Any, windows: Int[Tensor, "windows tokens"]) -> None:
    """Refuse windows that the model has no embedding or no position for, before it fails in the middle.

    Raises:
        InputError: with what it has.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = int(windows.max())
    if largest >= rows:
        raise InputError(
            f"text: has the token {largest:,}, and the model's embedding has {rows:,} rows",
            "use the tokenizer that belongs to the model: this one has more tokens",
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < windows.shape[1]:
        raise InputError(
            f"--window-tokens {windows.shape[1]}: the model has {positions:,} positions",
            f"give at most --window-tokens {positions}",
        )


def require_causal(model: Any, part: Int[Tensor, "one tokens"], one: Sequence[Call], other: Sequence[Call]) -> None:
    """Refuse a model whose predictions see the token that they predict, or whose blocks see the text itself.

    Args:
        one, other: what its blocks are called with for two texts.

    Raises:
        ModelStructureError: changing the last token changes what is predicted before it, or the calls differ.
    """
    require_same_calls(one, other)
    changed = part.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.get_input_embeddings().weight.shape[0]
    own, new = (model(input_ids=ids, use_cache=False).logits[:, :-1].float() for ids in (part, changed))
    if own.isfinite().all() and float((own - new).abs().max()) > 1e-2 * float(own.abs().max()):
        raise ModelStructureError(
            "its predictions change with the tokens that come after them",
            "give a causal language model: this one reads its whole input at once",
        )


@contextmanager
def without_masks(config: Any) -> Iterator[None]:
    """Sequences of length one need no mask, and only this attention knows it: eager attention makes one by copying
    from the CPU (Gemma-2), which a CUDA graph cannot record. No attention runs meanwhile."""
    text = config.get_text_config()
    kept = text._attn_implementation
    text._attn_implementation = "sdpa"
    try:
        yield
    finally:
        text._attn_implementation = kept
