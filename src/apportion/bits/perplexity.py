"""Perplexity of a model on a text: one stream, non-overlapping windows, in reading order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.game.game import require_finite
from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.models.staged import StagedModel
from apportion.models.text import windows_of

BATCH = 4


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean NLL per predicted token.

    Attributes:
        nll: nats per token. tokens: predicted tokens. windows: NLL of each window.
    """

    perplexity: float
    nll: float
    tokens: int
    windows: Float[NDArray[np.float64], " windows"]


def first_windows(
    tokenizer: Any, text: Path, *, window_tokens: int, windows: int | None = None, option: str = "--windows"
) -> Int[Tensor, "windows tokens"]:
    """The first windows of a text in reading order; all of them if no number is given (by the option named).

    Raises:
        InputError: the text is shorter than one window, or has fewer windows than asked for.
    """
    found = windows_of(text, tokenizer, window_tokens)
    if windows is not None and not 1 <= windows <= len(found):
        raise InputError(
            f"{option} {windows}: {text} has {len(found)} windows of {window_tokens} tokens",
            f"give a number from 1 to {len(found)}",
        )
    return found[:windows]


def perplexity(
    staged: StagedModel, tokenizer: Any, text: Path, *, window_tokens: int = 512, windows: int | None = None
) -> Perplexity:
    """Perplexity with the weights that are in place now.

    Args:
        windows: evaluate the first so many windows only.

    Raises:
        InputError: the text is shorter than one window, or has fewer windows than asked for.
        NumericError: the loss is not finite.
    """
    chosen = first_windows(tokenizer, text, window_tokens=window_tokens, windows=windows)
    found = []
    with progress("perplexity", len(chosen), "windows") as advance:
        for part in chosen.split(BATCH):
            found.append(staged.window_nll(part))
            advance(len(part))
    nll = np.concatenate(found)
    require_finite("the model", nll, "--dtype float32")
    mean = float(nll.mean())
    return Perplexity(float(np.exp(mean)), mean, len(nll) * (window_tokens - 1), nll)
