"""The loss that everything here is measured by."""

from jaxtyping import Float, Int
from torch import Tensor, nn


def token_nll(
    logits: Float[Tensor, "batch tokens vocabulary"],
    targets: Int[Tensor, "batch tokens"] | Float[Tensor, "batch tokens vocabulary"],
) -> Float[Tensor, "batch tokens"]:
    """Negative log-likelihood of each target (or mean over a distribution of them), in nats, in float32."""
    flat = logits.float().flatten(0, 1)
    return nn.functional.cross_entropy(flat, targets.flatten(0, 1), reduction="none").view(logits.shape[:2])
