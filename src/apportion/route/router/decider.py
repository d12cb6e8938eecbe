"""What may decide on a route: anything that scores the four strategies from standardised features and weights."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from apportion.route.ask.strategy import USES_COT, USES_RAG
from apportion.route.router.reader import Reader
from apportion.route.router.utility import Weights

HEADS = {"need_rag": USES_RAG, "need_cot": USES_COT}


@runtime_checkable
class Decider(Protocol):
    """Scores strategies; the highest is chosen.

    Attributes:
        kind: its name in a saved router.
        reader: the features it reads. columns: the strategies it may choose.
    """

    @property
    def kind(self) -> str: ...

    @property
    def reader(self) -> Reader: ...

    @property
    def columns(self) -> tuple[int, ...]: ...

    def scores(self, read: Float[ndarray, "n f"], weights: Weights) -> Float[ndarray, "n 4"]:
        """Scores of the strategies; -inf for one that may not be chosen."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """The same strategy for every question, whatever it says."""

    column: int
    columns: tuple[int, ...]
    kind = "constant"

    @property
    def reader(self) -> Reader:
        """Nothing is read."""
        return Reader((), np.zeros(0), np.zeros(0))

    def scores(self, read: Float[ndarray, "n f"], weights: Weights) -> Float[ndarray, "n 4"]:
        """1 for the strategy, 0 for the others that may be chosen."""
        return one_hot(np.full(len(read), self.column), self.columns)


def allowed(scores: Float[ndarray, "n 4"], columns: tuple[int, ...]) -> Float[ndarray, "n 4"]:
    """The scores, -inf where a strategy may not be chosen."""
    return np.where(np.isin(np.arange(4), columns), scores, -np.inf)


def one_hot(chosen: Int[ndarray, " n"], columns: tuple[int, ...]) -> Float[ndarray, "n 4"]:
    """Scores of 1 for what was chosen and 0 for the rest."""
    return allowed((np.arange(4) == np.asarray(chosen)[:, None]).astype(float), columns)


def heads_of(scores: Float[ndarray, "n 4"]) -> Float[ndarray, "n 2"]:
    """The logits of need_RAG and need_CoT that scores amount to: the best with it minus the best without.

    Infinite for a head that has no choice.

    >>> heads_of(np.array([[0.0, 2.0, 1.0, 3.0]])).tolist()
    [[2.0, 1.0]]
    """
    sides = [(scores[:, np.array(uses)].max(axis=1), scores[:, ~np.array(uses)].max(axis=1)) for uses in HEADS.values()]
    return np.stack([np.asarray(yes - no) for yes, no in sides], axis=1)
