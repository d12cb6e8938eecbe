"""The second decision: with the retrieved answer at hand, stop or reason on the same passages.

What reasoning would change is predicted from the answer (does it abstain, do the passages hold it, how likely
was it), the search and the question, by ridge regression; RAG+CoT is made where the predicted gain in quality
is worth its cost. Source: RASER (arXiv 2606.02488) decides after a retrieved answer; the features and the fit
are ours.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from apportion.route.router.reader import Reader
from apportion.route.router.utility import Weights


@dataclass(frozen=True, slots=True)
class Second:
    """What RAG+CoT changes once the RAG answer is there, as linear functions of the features.

    Attributes:
        means: [3] change of quality, scaled tokens and scaled latency at the mean of the features.
        slopes: [3, f] per spread.
    """

    reader: Reader
    means: Float[ndarray, "3"]
    slopes: Float[ndarray, "3 f"]

    def worth(self, read: Float[ndarray, "n f"], weights: Weights) -> Float[ndarray, " n"]:
        """Predicted utility of reasoning minus that of stopping."""
        signs = np.array([1.0, -weights.token, -weights.latency])
        return np.asarray(signs @ self.means + read @ (signs @ self.slopes))
