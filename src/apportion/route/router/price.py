"""Prices as providers charge them: input, cached input and output tokens each have their own."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from apportion.core.errors import InputError
from apportion.route.profile.profile import Profile

KINDS = ("in", "cached", "out")
EXAMPLE = "--price in=0.15,cached=0.08,out=0.60"


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, by kind, in any one currency. Seconds are priced by the latency weight.

    >>> Price(input=0.15, cached=0.08, output=0.6).of(prompt=1000.0, completion=100.0, cached=800.0)
    154.0
    """

    input: float
    cached: float
    output: float

    def __post_init__(self) -> None:
        wrong = [
            f"{kind}={value}"
            for kind, value in zip(KINDS, (self.input, self.cached, self.output), strict=True)
            if not (math.isfinite(value) and value >= 0)
        ]
        if wrong or self.input + self.output == 0:
            said = ", ".join(wrong) or "every price is 0"
            raise InputError(f"price {said}: expected finite numbers from 0, in or out above 0", f"as in {EXAMPLE}")

    def of(self, prompt: float, completion: float, cached: float = 0.0) -> float:
        """Millionths of the currency that one call costs."""
        return self.input * (prompt - cached) + self.cached * cached + self.output * completion

    def of_profile(self, profile: Profile) -> Float[ndarray, "n 4"]:
        """[n, 4] millionths of the currency that each answer cost; NaN where it was not recorded.

        Raises:
            InputError: prompt and completion tokens were not recorded apart.
        """
        if profile.completion_tokens is None:
            raise InputError("price: the profile does not hold prompt and completion tokens apart", "leave --price out")
        cached = np.zeros_like(profile.tokens) if profile.cached_tokens is None else profile.cached_tokens
        prompt = profile.tokens - profile.completion_tokens
        return np.asarray(
            self.input * (prompt - cached) + self.cached * cached + self.output * profile.completion_tokens
        )


def parse_price(text: str) -> Price:
    """A price as the command line has it, per million tokens; without `cached`, cached input costs as input.

    Raises:
        InputError: a part without a kind, an unknown kind, no number, `in` or `out` missing; all at once.

    >>> parse_price("in=.15,cached=.08,out=.6")
    Price(input=0.15, cached=0.08, output=0.6)
    """
    found: dict[str, float] = {}
    wrong: list[str] = []
    for part in text.split(","):
        kind, mark, number = (word.strip() for word in part.partition("="))
        try:
            if kind not in KINDS or not mark or kind in found:
                raise ValueError
            found[kind] = float(number)
        except ValueError:
            wrong.append(repr(part.strip()))
    wrong += [f"no {kind}" for kind in ("in", "out") if kind not in found and not wrong]
    if wrong:
        raise InputError(
            f"--price {text}: {', '.join(wrong)}: expected in, out and perhaps cached, each once, as KIND=NUMBER "
            "per million tokens",
            f"as in {EXAMPLE}",
        )
    return Price(found["in"], found.get("cached", found["in"]), found["out"])
