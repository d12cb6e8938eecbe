"""Perplexity of a model on a text: one stream, non-overlapping windows, in reading order."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.game import require_finite
from apportion.core.arrays import NDArray
from apportion.core.device import place, where_not_finite
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.staged import StagedModel
from apportion.models.text import prefix_of, windows_of


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean NLL per predicted token.

    Attributes:
        nll: nats per token. tokens: predicted tokens. windows: NLL of each window.
        bos: whether every window began with the beginning-of-text token; None where nobody said.
        unread: tensors of the checkpoint that the loaded class has no place for: layers beyond those that its
            configuration counts, among others.
    """

    perplexity: float
    nll: float
    tokens: int
    windows: Float[NDArray[np.float64], " windows"]
    bos: bool | None = None
    unread: tuple[str, ...] = ()


def first_windows(
    tokenizer: Any,
    text: Path,
    *,
    window_tokens: int,
    windows: int | None = None,
    option: str = "--windows",
    bos: bool | None = None,
) -> Int[Tensor, "windows tokens"]:
    """The first windows of a text in reading order; all of them if no number is given (by the option named).

    Args:
        bos: as `prefix_of` takes it.

    Raises:
        InputError: the text is shorter than one window, or has fewer windows than asked for.
    """
    found = windows_of(text, tokenizer, window_tokens, bos=bos)
    if windows is not None and not 1 <= windows <= len(found):
        raise InputError(
            f"{option} {windows}: {text} has {len(found)} windows of {window_tokens} tokens",
            f"give a number from 1 to {len(found)}",
        )
    return found[:windows]


def perplexity(
    model: str,
    text: Path,
    *,
    window_tokens: int = 512,
    windows: int | None = None,
    bos: bool | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Perplexity:
    """Perplexity of a checkpoint, full precision or quantized by this program.

    Args:
        text: a file with texts or conversations, see `documents` for the forms that are read.
        window_tokens: tokens per window; the first of each predicts nothing.
        bos: whether every window begins with the beginning-of-text token (Gemma's perplexity explodes without); None:
            where the tokenizer itself puts one before a text.
        windows: evaluate the first so many windows only.

    Returns:
        exp of the mean loss in nats over all predicted tokens, and the loss of every window.

    Raises:
        InputError: no such model or text, the text is shorter than one window, or has fewer windows than asked for.
        NumericError: the loss is not finite. OutOfMemoryError: a single window does not fit the device.

    Cost: one forward pass over the text.

    >>> found = perplexity(MODEL, HELD_OUT, window_tokens=24, windows=3)
    >>> found.tokens, round(float(found.perplexity / np.exp(found.nll)), 6)
    (69, 1.0)
    """
    placement, tokenizer = place(device, dtype), load_tokenizer(model, trust_remote_code=trust_remote_code)
    taken = first_windows(tokenizer, text, window_tokens=window_tokens, windows=windows, bos=bos)
    staged = load_staged(model, placement, trust_remote_code=trust_remote_code)
    return replace(perplexity_of(staged, taken), bos=bool(prefix_of(tokenizer, bos)), unread=staged.origin.unknown)


def perplexity_of(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> Perplexity:
    """Perplexity with the weights that are in place now.

    Raises:
        NumericError: the loss is not finite.
    """
    with progress("perplexity", len(windows), "windows") as advance:
        nll = staged.window_nll(windows, advance)
    require_finite("the model", nll, where_not_finite(staged.placement.dtype))
    mean = float(nll.mean())
    return Perplexity(float(np.exp(mean)), mean, len(nll) * (windows.shape[1] - 1), nll)
