"""What answering cost with everything that was done for it: the one place where probes are counted.

draft    is the Direct answer: free when the route ends there, otherwise Direct's tokens and time on top
search   made for features: its time on top where the route would not have searched
look     the RAG answer was made and looked at: free when the route ends there; RAG+CoT after it costs both,
         the search once
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from apportion.core.errors import InputError
from apportion.route.ask.strategy import DIRECT, RAG, USES_RAG
from apportion.route.profile.profile import Profile
from apportion.route.router.price import Price


@dataclass(frozen=True, slots=True)
class Done:
    """[n] What was done for each question before its last call."""

    draft: Bool[ndarray, " n"]
    search: Bool[ndarray, " n"]
    look: Bool[ndarray, " n"]

    @classmethod
    def for_all(cls, n: int, *, draft: bool = False, search: bool = False, look: bool = False) -> "Done":
        """The same for every question."""
        return cls(*(np.full(n, part) for part in (draft, search, look)))


@dataclass(frozen=True, slots=True)
class Spent:
    """What ending with each strategy costs; NaN where it was not recorded.

    Attributes:
        tokens: prompt and completion of every call. latency_ms: of all in turn.
        charged: what token weights weigh: the price where there is one, otherwise the tokens.
    """

    tokens: Float[ndarray, "n 4"]
    charged: Float[ndarray, "n 4"]
    latency_ms: Float[ndarray, "n 4"]


def spent(profile: Profile, done: Done, price: Price | None = None) -> Spent:
    """All costs of a profile's questions, what was done before counted.

    Raises:
        InputError: a draft or a look is to be counted, and Direct or RAG was not recorded.
    """
    for wanted, name in ((done.draft, "direct"), (done.look, "rag")):
        if wanted.any() and not profile.has_cost(name):
            raise InputError(f"profile: no {name} outcomes, and what was done first costs what they cost")
    tokens = _with_calls(profile.tokens, done)
    charged = tokens if price is None else _with_calls(price.of_profile(profile), done)
    latency_ms = _with_calls(profile.latency_ms, done)
    search_ms = np.nan_to_num(profile.retrieval_ms)[:, None]
    searched_twice = np.array(USES_RAG) & (np.arange(4) != RAG) & done.look[:, None]
    searched_apart = ~np.array(USES_RAG) & done.search[:, None] & ~done.look[:, None]
    return Spent(tokens, charged, latency_ms + search_ms * searched_apart - search_ms * searched_twice)


def _with_calls(costs: Float[ndarray, "n 4"], done: Done) -> Float[ndarray, "n 4"]:
    """Each strategy's costs and those of the calls made before it."""
    total = costs.copy()
    for made, own in ((done.draft, DIRECT), (done.look, RAG)):
        others = np.arange(4) != own
        total[:, others] += np.where(made, costs[:, own], 0.0)[:, None]
    return total
