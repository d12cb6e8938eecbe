"""Perplexity of a model on a text: one stream, non-overlapping windows, in reading order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from apportion.bits.calibration import cut, encode, read_text
from apportion.bits.model import StagedModel
from apportion.core.errors import InputError, NumericError
from apportion.core.progress import progress

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
    cut_windows = cut(*encode(read_text(text), tokenizer, window_tokens, str(text)), window_tokens)
    if windows is not None and not 1 <= windows <= len(cut_windows):
        raise InputError(
            f"--windows {windows}: {text} has {len(cut_windows)} windows of {window_tokens} tokens",
            f"give a number from 1 to {len(cut_windows)}",
        )
    chosen = cut_windows[:windows]
    found = []
    with progress("perplexity", len(chosen), "windows") as advance:
        for part in chosen.split(BATCH):
            found.append(staged.window_nll(part))
            advance(len(part))
    nll = np.concatenate(found)
    if not np.isfinite(nll).all():
        raise NumericError(
            f"the loss is not finite on windows {np.flatnonzero(~np.isfinite(nll))[:8].tolist()}",
            "use --dtype float32",
        )
    mean = float(nll.mean())
    return Perplexity(float(np.exp(mean)), mean, len(nll) * (window_tokens - 1), nll)
