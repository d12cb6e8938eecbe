"""Quality, cost weights -> utility, labels. Pure functions of arrays.

    U(s) = Q(s) - w_tok * tokens(s) / tokens_ref - w_lat * latency(s) / latency_ref          [ours, METHODS 2]

The references are the profile's means of RAG+CoT (or of the most costly strategy present), so a weight of 1
means: one always-on answer's cost is worth one point of quality. With a price, money takes the place of tokens.
What is done before the last call is counted (`spending`).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.route.ask.strategy import RAG_COT, STRATEGIES
from apportion.route.profile.profile import Bools, Floats, Profile
from apportion.route.router.price import Price
from apportion.route.router.spending import Done, spent

Ints = NDArray[np.int64]
TOKEN_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
LATENCY_WEIGHTS = (0.0, 0.1, 0.5)


@dataclass(frozen=True, slots=True, order=True)
class Weights:
    """What the costs of one always-on answer are worth, in points of quality.

    Args:
        token: 0 and above; what always-on tokens (with a price: their price) are worth.
        latency: 0 and above; what always-on latency is worth.

    Raises:
        InputError: a weight below 0 or not finite.

    >>> Weights(0.3) < Weights(0.3, latency=0.1)
    True
    """

    token: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("token", self.token), ("latency", self.latency)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(
                    f"{name} weight {value}: expected a finite number from 0",
                    f"give --{name}-weight 0 to ignore that cost",
                )


@dataclass(frozen=True, slots=True)
class Scale:
    """The costs that a weight of 1 refers to, and whose they are; no latency reference without latencies.

    Attributes:
        tokens: tokens of one answer; with a price, millionths of its currency.
        price: what tokens cost; None where they are simply counted.
    """

    tokens: float
    latency_ms: float | None
    strategy: str
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Costed:
    """Quality and scaled costs of n questions: U = quality - w_tok * tokens - w_lat * latency.

    Attributes:
        quality, tokens, latency: [n, 4]; columns that may not be chosen have quality -inf and cost 0.
            Costs are in units of the scale's references; latency is all 0 where it was not recorded.
        columns: the columns that may be chosen.
        has_latency: whether latency was recorded.
    """

    quality: Float[ndarray, "n 4"]
    tokens: Float[ndarray, "n 4"]
    latency: Float[ndarray, "n 4"]
    columns: tuple[int, ...]
    has_latency: bool

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.quality)

    def select(self, rows: Ints | Bools) -> "Costed":
        """The same for some questions."""
        return replace(self, quality=self.quality[rows], tokens=self.tokens[rows], latency=self.latency[rows])


def scale_of(profile: Profile, price: Price | None = None) -> Scale:
    """The references of a profile: means of RAG+CoT, or of the strategy with the most tokens present."""
    whole = profile.only_complete()
    columns = list(whole.columns)
    charged = whole.tokens if price is None else price.of_profile(whole)
    column = RAG_COT if RAG_COT in columns else columns[int(charged[:, columns].mean(axis=0).argmax())]
    name = STRATEGIES[column]
    tokens = float(charged[:, column].mean())
    if tokens <= 0:
        raise InputError(f"profile: {name} cost nothing on average", "record prompt and completion tokens")
    latency = float(whole.latency_ms[:, column].mean()) if whole.has_latency else None
    if latency is not None and latency <= 0:
        raise InputError(f"profile: {name} took no time on average", "record latencies or leave them null")
    return Scale(tokens, latency, name, price)


def cost(profile: Profile, scale: Scale, *, draft: bool = False, search: bool = False, look: bool = False) -> Costed:
    """Scaled quality and costs of complete questions, what was done before the last call counted.

    Args:
        profile: complete questions only.
        draft: the route is decided after a Direct draft.
        search: the route is decided after a search (its latency counts where `retrieval_ms` is known).
        look: whether to reason is decided after the RAG answer.

    Raises:
        InputError: a draft or a look is to be counted and what it costs was not recorded.
    """
    if not profile.complete.all():
        raise InputError("profile: some questions lack a strategy", "use profile.only_complete()")
    absent = [i for i in range(4) if i not in profile.columns]
    total = spent(profile, Done.for_all(profile.n, draft=draft, search=search, look=look), scale.price)
    timed = profile.has_latency and scale.latency_ms is not None
    quality, tokens = profile.quality.copy(), total.charged / scale.tokens
    latency = total.latency_ms / (scale.latency_ms or 1.0) if timed else np.zeros_like(tokens)
    quality[:, absent], tokens[:, absent], latency[:, absent] = -np.inf, 0.0, 0.0
    return Costed(quality, tokens, latency, profile.columns, timed)


def utility(costed: Costed, weights: Weights) -> Float[ndarray, "n 4"]:
    """Utilities; -inf where a strategy may not be chosen.

    Raises:
        InputError: a latency weight above 0 where no latency was recorded.
    """
    if weights.latency and not costed.has_latency:
        raise InputError(
            f"latency weight {weights.latency}: the profile holds no latencies, expected 0",
            "profile with latencies, or leave --latency-weight out",
        )
    value: Floats = costed.quality - weights.token * costed.tokens - weights.latency * costed.latency
    return value


def oracle(utilities: Float[ndarray, "n 4"]) -> Float[ndarray, " n"]:
    """Utility of the best strategy of each question, in hindsight."""
    return np.asarray(utilities.max(axis=1))


def labels(utilities: Float[ndarray, "n 4"], tokens: Float[ndarray, "n 4"]) -> Int[ndarray, " n"]:
    """Column of the best strategy; among equals the one with fewer tokens, then the first."""
    best = utilities >= oracle(utilities)[:, None]
    return np.asarray(np.where(best, tokens, np.inf).argmin(axis=1))


def best_static(costed: Costed, weights: Weights) -> int:
    """Column of the strategy with the highest mean utility; among equals the one with fewer tokens."""
    means = utility(costed, weights).mean(axis=0, keepdims=True)
    return int(labels(means, costed.tokens.mean(axis=0, keepdims=True))[0])


def weight_grid(tokens: tuple[float, ...], latencies: tuple[float, ...], *, timed: bool) -> list[Weights]:
    """Every pair of weights; latency weights only where there are latencies."""
    return [Weights(token, latency) for latency in (latencies if timed else (0.0,)) for token in tokens]
