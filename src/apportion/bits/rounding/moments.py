"""Second moments of a linear's inputs: what error-compensating roundings know of the calibration text."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from apportion.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Moments:
    """Means over calibration tokens, float32.

    Attributes:
        hessian: E[x x'], x what the linear is given when everything before it is rounded already.
        cross: E[f x'], f what it is given in full precision; None where the two are not told apart.
        tokens: number of tokens behind the means.
    """

    hessian: Float[Tensor, "columns columns"]
    cross: Float[Tensor, "columns columns"] | None
    tokens: int


def require_moments(rounding: str, moments: Moments | None) -> Moments:
    """The moments, or a refusal.

    Raises:
        InputError: there are none.
    """
    if moments is None:
        raise InputError(f"rounding {rounding!r}: needs calibration text", "give --calibration, or round with nearest")
    return moments
