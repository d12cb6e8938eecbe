"""What making the draft is worth, question by question: the outcome of drafting first and deciding then."""

from dataclasses import dataclass

import numpy as np

from apportion.route.profile.profile import Floats
from apportion.route.router.gate import LATENCY_NODES, TOKEN_NODES, nearest
from apportion.route.router.utility import Costed, Ints, Weights, utility


@dataclass(frozen=True, slots=True)
class Drafted:
    """What the full tier, which did not see a question, decides for it after a draft.

    Attributes:
        columns: [n, token nodes, latency nodes] of the gate's grid.
        costed: quality and costs with the draft counted.
    """

    columns: Ints
    costed: Costed

    def utility(self, weights: Weights) -> Floats:
        """[n] utility of drafting first, at the decisions of the nearest node."""
        token = nearest(TOKEN_NODES, weights.token)
        latency = nearest(LATENCY_NODES, weights.latency) if self.costed.has_latency else 0
        chosen = self.columns[:, token, latency]
        return np.asarray(utility(self.costed, weights)[np.arange(len(chosen)), chosen])
