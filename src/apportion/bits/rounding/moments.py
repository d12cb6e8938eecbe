"""Second moments of a linear's inputs: what error-compensating roundings know of the calibration text."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from apportion.core.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Means over calibration tokens, float32; one value for all linears that are given the same input.

    Attributes:
        hessian: E[x x'], x what the linear is given when everything before it is rounded already.
        cross: E[f x'], f what it is given in full precision; None where the two are not told apart.
        tokens: number of tokens behind the means.
        kept: what was derived from them so far, see `once`.
    """

    hessian: Float[Tensor, "columns columns"]
    cross: Float[Tensor, "columns columns"] | None
    tokens: int
    kept: dict[Hashable, Tensor] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns, made at the first call with this key: q, k and v (and all widths) share a factorisation.

        Example:
            >>> import torch
            >>> moments = Moments(torch.eye(2), None, 1)
            >>> first = moments.once("double", lambda: 2 * moments.hessian)
            >>> moments.once("double", lambda: torch.zeros(0)) is first
            True
        """
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def require_moments(rounding: str, moments: Moments | None) -> Moments:
    """The moments, or a refusal.

    Raises:
        InputError: there are none.
    """
    if moments is None:
        raise InputError(f"rounding {rounding!r}: needs calibration text", "give --calibration, or round with nearest")
    return moments
