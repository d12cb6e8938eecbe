"""Quality, cost weights -> utility, labels, regret. Pure functions of arrays.

    U(s) = Q(s) - w_tok * tokens(s) / tokens_ref - w_lat * latency(s) / latency_ref          [ours, METHODS 2]

The references are the profile's means of RAG+CoT (or of the most costly strategy present), so a weight of 1
means: one always-on answer's cost is worth one point of quality.

Probes are counted for the routes that used them: the draft is the Direct answer, so it is free when the
route is Direct and adds Direct's tokens and latency to every other route; the search made for NQC adds its
latency to the two routes that would not have searched.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.route.ask.strategy import DIRECT, RAG_COT, USES_RAG
from apportion.route.profile.profile import Floats, Profile

Ints = NDArray[np.int64]
TOKEN_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
LATENCY_WEIGHTS = (0.0, 0.1, 0.5)


@dataclass(frozen=True, slots=True, order=True)
class Weights:
    """What one always-on answer's tokens and latency are worth, in points of quality."""

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
    """The costs that a weight of 1 refers to, and whose they are; no latency reference without latencies."""

    tokens: float
    latency_ms: float | None
    strategy: str


@dataclass(frozen=True, slots=True)
class Costed:
    """Quality and scaled costs of n questions: U = quality - w_tok * tokens - w_lat * latency.

    Attributes:
        quality, tokens, latency: [n, 4]; columns that may not be chosen have quality -inf and cost 0.
            Costs are in units of the scale's references; latency is all 0 where it was not recorded.
        columns: the columns that may be chosen.
        has_latency: whether latency was recorded.
    """

    quality: Floats
    tokens: Floats
    latency: Floats
    columns: tuple[int, ...]
    has_latency: bool

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.quality)

    def select(self, rows: Ints) -> "Costed":
        """The same for some questions."""
        return replace(self, quality=self.quality[rows], tokens=self.tokens[rows], latency=self.latency[rows])


def scale_of(profile: Profile) -> Scale:
    """The references of a profile: means of RAG+CoT, or of the strategy with the most tokens present."""
    whole = profile.only_complete()
    columns = list(whole.columns)
    means = whole.tokens[:, columns].mean(axis=0)
    column = RAG_COT if RAG_COT in columns else columns[int(means.argmax())]
    name = ("direct", "rag", "cot", "rag+cot")[column]
    tokens = float(whole.tokens[:, column].mean())
    if tokens <= 0:
        raise InputError(f"profile: {name} used no tokens on average", "record prompt and completion tokens")
    latency = float(whole.latency_ms[:, column].mean()) if whole.has_latency else None
    if latency is not None and latency <= 0:
        raise InputError(f"profile: {name} took no time on average", "record latencies or leave them null")
    return Scale(tokens, latency, name)


def cost(profile: Profile, scale: Scale, *, draft: bool = False, search: bool = False) -> Costed:
    """Scaled quality and costs of complete questions, the probes used counted.

    Args:
        profile: complete questions only.
        draft: the route is decided after a Direct draft.
        search: the route is decided after a search (its latency counts where `retrieval_ms` is known).

    Raises:
        InputError: the draft is to be counted and Direct's costs were not recorded.
    """
    if not profile.complete.all():
        raise InputError("profile: some questions lack a strategy", "use profile.only_complete()")
    absent = [i for i in range(4) if i not in profile.columns]
    if draft and not profile.has_draft_cost:
        raise InputError("the draft's cost is Direct's, and the profile has no direct outcomes")
    timed = profile.has_latency and scale.latency_ms is not None
    quality, tokens = profile.quality.copy(), profile.tokens / scale.tokens
    latency = profile.latency_ms / (scale.latency_ms or 1.0) if timed else np.zeros_like(tokens)
    if draft:
        for other in (i for i in range(4) if i != DIRECT):
            tokens[:, other] += tokens[:, DIRECT]
            latency[:, other] += latency[:, DIRECT]
    if search and timed:
        extra = np.nan_to_num(profile.retrieval_ms) / (scale.latency_ms or 1.0)
        latency[:, [i for i in range(4) if not USES_RAG[i]]] += extra[:, None]
    quality[:, absent], tokens[:, absent], latency[:, absent] = -np.inf, 0.0, 0.0
    return Costed(quality, tokens, latency, profile.columns, timed)


def utility(costed: Costed, weights: Weights) -> Floats:
    """[n, 4] utilities; -inf where a strategy may not be chosen.

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


def oracle(utilities: Floats) -> Floats:
    """[n] utility of the best strategy of each question, in hindsight."""
    return np.asarray(utilities.max(axis=1))


def regret(utilities: Floats) -> Floats:
    """[n, 4] what each strategy loses against the question's best; 0 for the best, inf if absent."""
    return np.asarray(oracle(utilities)[:, None] - utilities)


def labels(utilities: Floats, tokens: Floats) -> Ints:
    """[n] column of the best strategy; among equals the one with fewer tokens, then the first."""
    best = utilities >= oracle(utilities)[:, None]
    return np.asarray(np.where(best, tokens, np.inf).argmin(axis=1))


def best_static(costed: Costed, weights: Weights) -> int:
    """Column of the strategy with the highest mean utility; among equals the one with fewer tokens."""
    means = utility(costed, weights).mean(axis=0, keepdims=True)
    return int(labels(means, costed.tokens.mean(axis=0, keepdims=True))[0])


def weight_grid(tokens: tuple[float, ...], latencies: tuple[float, ...], *, timed: bool) -> list[Weights]:
    """Every pair of weights; latency weights only where there are latencies."""
    return [Weights(token, latency) for latency in (latencies if timed else (0.0,)) for token in tokens]
