"""Latency of an answer when nothing else runs, from those that were measured so.

    latency = search + base * calls + per prompt token * prompt tokens + per completion token * completion tokens

At concurrency 8 or in batches of 64 a call waits for others, and a short answer seems nearly as slow as a long
one; what a user of an idle server waits is this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST = 8  # answers measured alone, below which nothing is estimated


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Milliseconds as a linear function of tokens, fitted to answers measured one at a time.

    Attributes:
        measured: answers that it was fitted to. error_ms: their mean absolute residual.
    """

    base_ms: float
    prompt_token_ms: float
    completion_token_ms: float
    measured: int
    error_ms: float

    def estimate(self, prompt_tokens: int, completion_tokens: int, search_ms: float, calls: int = 1) -> float:
        """Milliseconds of an answer with these tokens, made by so many calls."""
        tokens_ms = self.prompt_token_ms * prompt_tokens + self.completion_token_ms * completion_tokens
        return search_ms + self.base_ms * calls + tokens_ms

    def __str__(self) -> str:
        return (
            f"estimated from {self.measured} answers measured one at a time: {self.base_ms:.1f} ms + "
            f"{self.prompt_token_ms:.3g} ms a prompt token + {self.completion_token_ms:.3g} ms a completion token "
            f"(mean error {self.error_ms:.1f} ms), the search included"
        )


def fit_latency(alone: Sequence[Mapping[str, Any]]) -> LatencyModel | None:
    """The model of answers measured alone; None with fewer than eight.

    Args:
        alone: each with prompt_tokens, completion_tokens, latency_ms and of that search_ms; calls where not one.

    Least squares with no coefficient below zero, on relative errors, so that short answers count as long ones do.

    >>> made = [
    ...     {"prompt_tokens": p, "completion_tokens": c, "search_ms": 1.0, "latency_ms": 6.0 + 0.1 * p + 2.0 * c}
    ...     for p in (10, 100, 400)
    ...     for c in (1, 5, 50)
    ... ]
    >>> model = fit_latency(made)
    >>> round(model.estimate(200, 10, 0.5), 6)
    45.5
    """
    from sklearn.linear_model import LinearRegression

    if len(alone) < LEAST:
        return None
    sizes = np.array([[float(one.get("calls", 1)), one["prompt_tokens"], one["completion_tokens"]] for one in alone])
    waited = np.array([one["latency_ms"] - one["search_ms"] for one in alone])
    scale = 1 / np.maximum(waited, 1e-3)
    found = LinearRegression(positive=True, fit_intercept=False).fit(sizes * scale[:, None], waited * scale).coef_
    error = float(np.abs(sizes @ found - waited).mean())
    return LatencyModel(float(found[0]), float(found[1]), float(found[2]), len(alone), error)
