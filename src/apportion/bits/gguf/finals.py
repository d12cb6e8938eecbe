"""The last choice: the best few plans and what stands beside them, on text that no plan was chosen on.

Among many plans the best on a short text owes part of its lead to luck there; the optimum of the costs alone and the
standard mix of that size do not. They meet on other windows, and the best there is kept.
"""

from dataclasses import dataclass

from apportion.bits.game import Assignment, Game
from apportion.bits.gguf.search import FileSearch

BEST = 3  # of the plans measured


@dataclass(frozen=True, slots=True)
class Finalist:
    """A plan that came to the last choice.

    Attributes:
        source: the step of the search that asked for it, or its name. measured, judged: mean KL in nats per token, on
            the search's text and on the other.
    """

    assignment: Assignment
    source: str
    measured: float
    judged: float


def finalists(state: FileSearch) -> list[Assignment]:
    """The best plans measured, the first one asked for (the costs' own optimum), and the rivals."""
    named = [plan for plan in state.ranked if plan in state.rivals]
    first = [plan for plan in state.ranked if plan == next(iter(state.seen))]
    return list(dict.fromkeys([*state.ranked[:BEST], *first, *named]))


def judged(state: FileSearch, game: Game) -> list[Finalist]:
    """All finalists, the best first.

    Args:
        game: on text that the search did not see.
    """
    plans = finalists(state)
    values = game.values(plans).mean(axis=1).tolist()
    found = [
        Finalist(plan, state.sources[plan], state.seen[plan], value) for plan, value in zip(plans, values, strict=True)
    ]
    return sorted(found, key=lambda finalist: finalist.judged)
