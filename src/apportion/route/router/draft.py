"""What making the draft is worth, question by question: the outcome of drafting first and deciding then."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from apportion.route.router.gate import LATENCY_NODES, TOKEN_NODES, nearest
from apportion.route.router.utility import Costed, Weights, utility


@dataclass(frozen=True, slots=True)
class Drafted:
    """What the full tier, which did not see a question, decides for it after a draft.

    Attributes:
        columns: of the gate's grid.
        costed: quality and costs with the draft counted.
    """

    columns: Int[ndarray, "n t l"]
    costed: Costed

    def utility(self, weights: Weights) -> Float[ndarray, " n"]:
        """Utility of drafting first, at the decisions of the nearest node."""
        token = nearest(TOKEN_NODES, weights.token)
        latency = nearest(LATENCY_NODES, weights.latency) if self.costed.has_latency else 0
        chosen = self.columns[:, token, latency]
        return np.asarray(utility(self.costed, weights)[np.arange(len(chosen)), chosen])
