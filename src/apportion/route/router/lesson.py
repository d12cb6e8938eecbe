"""What everything that may decide learns from: one value, so that all are fitted and judged alike."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from apportion.route.ask.features import needs_of
from apportion.route.profile.profile import Profile
from apportion.route.router.gate import node_grid
from apportion.route.router.plan import TrainingPlan
from apportion.route.router.utility import Costed, Ints, Scale, Weights, best_static, cost, utility


@dataclass(frozen=True, slots=True)
class Lesson:
    """Complete questions whose features vary, their folds, and how to learn from them.

    Attributes:
        plain: quality and costs, no probes counted. held: row numbers of each fold, held out from its members.
    """

    profile: Profile
    scale: Scale
    plain: Costed
    held: tuple[Ints, ...]
    plan: TrainingPlan
    seed: int
    caution: float

    def costed(self, names: tuple[str, ...], *, look: bool = False) -> Costed:
        """Costs of deciding by these features, what they need counted; with `look`, after the RAG answer too."""
        return probed_cost(self.profile, self.scale, names, look=look)

    @property
    def nodes(self) -> list[Weights]:
        """The weights at which every way to decide is judged; latency weights run fastest."""
        tokens, latencies = node_grid(timed=self.plain.has_latency)
        return [Weights(token, latency) for token in tokens for latency in latencies]

    @property
    def shape(self) -> tuple[int, int]:
        """Token nodes, latency nodes."""
        tokens, latencies = node_grid(timed=self.plain.has_latency)
        return len(tokens), len(latencies)

    def static(self) -> Float[ndarray, "n t l"]:
        """Utility of the best static strategy at each node, no probes made."""
        found = [utility(self.plain, weights)[:, best_static(self.plain, weights)] for weights in self.nodes]
        return np.stack(found, axis=1).reshape(self.profile.n, *self.shape)


def probed_cost(profile: Profile, scale: Scale, names: tuple[str, ...], *, look: bool = False) -> Costed:
    """Costs of deciding by these features, what they need counted."""
    needs = needs_of(names)
    return cost(profile, scale, draft=needs.draft, search=needs.search, look=look)
