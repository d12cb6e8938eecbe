"""Two models on the same text, token by token: exact over the whole vocabulary, in bounded memory.

Of the reference only the hidden states after its last block are kept (tokens x hidden), and its head; logits of
both are made again from those states, a few tokens at a time, so that a vocabulary of 260 thousand never sets the
memory. Nothing is cut to the k most likely tokens: the figures are exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from apportion.core.arrays import NDArray
from apportion.core.device import where_not_finite
from apportion.core.errors import InputError, NumericError
from apportion.core.progress import progress
from apportion.models.staged import BLOCK_TOKENS, StagedModel

LOGIT_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # of one model's logits in flight
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Reference:
    """What is kept of the reference.

    Attributes:
        windows: the text. hidden: its states after the last block, in its compute dtype, on its device.
        head: those states -> logits [batch, tokens, vocabulary].
    """

    windows: Int[Tensor, "windows tokens"]
    hidden: Float[Tensor, "windows tokens hidden"]
    head: Head


@dataclass(frozen=True, slots=True)
class TokenDivergence:
    """What was measured of every predicted token; windows are rows.

    Attributes:
        kl: KL(reference || candidate) in nats.
        same_top: whether both have the same most likely token.
        change: probability of the text's own next token, candidate minus reference.
        nll, reference_nll: of the text's own next token, in nats.
    """

    kl: Float[NDArray[np.float32], "windows predicted"]
    same_top: Bool[NDArray[np.bool_], "windows predicted"]
    change: Float[NDArray[np.float32], "windows predicted"]
    nll: Float[NDArray[np.float32], "windows predicted"]
    reference_nll: Float[NDArray[np.float32], "windows predicted"]


def reference_of(staged: StagedModel, windows: Int[Tensor, "windows tokens"], head: Head | None = None) -> Reference:
    """Run the model with the weights that are in place now, and keep what its predictions are made of.

    Args:
        windows: [windows, tokens] token ids.
        head: final norm and output head with the reference's weights; the model's own if left out, which must then
            keep its weights for as long as the reference is used.

    Returns:
        The reference, for any number of `divergence_of`.

    Cost: one forward pass; tokens x hidden numbers are kept.
    """
    return Reference(windows, staged.last_hidden(windows), head or staged.logits)


@torch.inference_mode()
def divergence_of(reference: Reference, candidate: StagedModel) -> TokenDivergence:
    """Compare a candidate, with the weights that are in place now, with the reference on the reference's text.

    Args:
        candidate: another model of the same vocabulary, or the reference's own with other weights in its blocks.

    Returns:
        Figures of every predicted token.

    Raises:
        InputError: another vocabulary. NumericError: a logit is NaN or infinite.

    Cost: one forward pass of the candidate, and both heads once.

    Example:
        >>> from apportion.core.device import place
        >>> from apportion.models.load import load_staged
        >>> staged = load_staged(MODEL, place("cpu", "float32"))
        >>> reference = reference_of(staged, torch.arange(2, 34).view(2, 16))
        >>> for path in staged.originals:
        ...     staged.model.get_submodule(path).weight.data = staged.own_weight(path) * 1.01
        >>> found = divergence_of(reference, staged)
        >>> found.kl.shape, bool(0 < found.kl.mean() < 0.1)
        ((2, 15), True)
    """
    parts: list[tuple[Tensor, ...]] = []
    device = torch.device(candidate.placement.device).type
    step = max(1, BLOCK_TOKENS.get(device, 2048) // reference.windows.shape[1])
    with progress("divergence", len(reference.windows), "windows") as advance:
        for start in range(0, len(reference.windows), step):
            part = slice(start, start + step)
            windows = reference.windows[part]

            def work(part: slice = part, windows: Tensor = windows) -> tuple[Tensor, ...]:
                return compared(reference, part, candidate.run_blocks(windows), candidate.logits)

            parts.append(candidate.within_memory(windows, work))
            advance(len(windows))
    kl, same, change, nll, own = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    if not np.isfinite(kl).all():
        remedy = where_not_finite(candidate.placement.dtype)
        raise NumericError("the divergence is not finite: a model's logits are NaN or infinite", remedy)
    return TokenDivergence(kl, same, change, nll, own)


def compared(reference: Reference, part: slice, hidden: Tensor, head: Head) -> tuple[Tensor, ...]:
    """The five figures of some windows, a few tokens at a time."""
    theirs = reference.hidden[part].to(hidden.device)
    targets = reference.windows[part].to(hidden.device)[:, 1:]
    count, length = targets.shape
    flat_theirs, flat_hidden = theirs[:, :-1].flatten(0, 1), hidden[:, :-1].flatten(0, 1)
    rows = max(1, min(len(flat_hidden), 256))
    found: list[tuple[Tensor, ...]] = []
    start = 0
    while start < len(flat_hidden):
        chunk = slice(start, start + rows)
        p, q = reference.head(flat_theirs[None, chunk])[0], head(flat_hidden[None, chunk])[0]
        found.append(token_figures(p, q, targets.flatten()[chunk]))
        start += rows
        rows = max(1, LOGIT_BYTES.get(hidden.device.type, LOGIT_BYTES["cpu"]) // (4 * p.shape[-1]))
    return tuple(torch.cat(column).view(count, length) for column in zip(*found, strict=True))


def token_figures(
    reference: Float[Tensor, "tokens vocabulary"],
    candidate: Float[Tensor, "tokens candidates"],
    targets: Int[Tensor, " tokens"],
) -> tuple[Tensor, ...]:
    """KL, same top token, change of the right token's probability, NLL of candidate and reference.

    >>> p = torch.tensor([[0.0, 0.0]])
    >>> q = torch.tensor([[0.0, 1.0986123]])  # probabilities 1/4 and 3/4
    >>> kl, same, change, nll, own = token_figures(p, q, torch.tensor([1]))
    >>> [round(float(x), 4) for x in (kl, change, nll, own)]
    [0.1438, 0.25, 0.2877, 0.6931]
    """
    if reference.shape != candidate.shape:
        raise InputError(
            f"CANDIDATE: predicts {candidate.shape[-1]} tokens and REFERENCE {reference.shape[-1]}",
            "compare models of one vocabulary",
        )
    log_p, log_q = reference.float().log_softmax(-1), candidate.float().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    own, nll = (-log.gather(-1, targets[:, None])[:, 0] for log in (log_p, log_q))
    return kl, log_p.argmax(-1) == log_q.argmax(-1), (-nll).exp() - (-own).exp(), nll, own
