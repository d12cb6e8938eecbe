"""What every type of every matrix costs alone, of all of them at once, from a few backward passes.

To second order the KL from the model's own predictions is that of a quadratic form, the Fisher information:

    KL(W + D) = 1/2 E[<g, D>^2],   g the gradient of log p(y) at W, y drawn from the model's own predictions

For one sequence, g may be the gradient of the sum over its tokens: gradients of different tokens are uncorrelated,
since each y is drawn from its own prediction. What rounding does to different weights is close to independent and of
mean zero, so of the square only the diagonal stays:

    KL(W + D) = 1/2 sum_ij E[g_ij^2] D_ij^2

<g, D>^2 itself is one chi-square number a sequence (relative variance 2), drawn anew for every type; the diagonal is a
mean over all weights, and the same gradients serve all types. Over 64 sequences of SmolLM2-135M the two differ by
little more than the former's noise (median ratio of each type .97 to 1.06; pooled over a matrix's types 10 % about 1,
where 9 % are noise), and per sequence the latter's relative variance is .12.
Source: the identity is standard (Martens, arXiv 1412.1193); the diagonal for rounding is Optimal Brain Damage's
(LeCun et al. 1990); its use for choosing types is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.gguf.bank import GgufBank
from apportion.core.arrays import NDArray
from apportion.core.progress import progress


@dataclass(frozen=True, slots=True)
class Fisher:
    """Costs of all pairs.

    Attributes:
        costs: [players, rungs] KL in nats per token of each matrix alone in each type.
        error: relative standard error of a matrix's costs, the median over matrices: how much they owe to the
            sequences that were drawn. None of a single sequence.
        sequences, tokens: how many samples, and of how many tokens each.
    """

    costs: Float[NDArray[np.float64], "players rungs"]
    error: float | None
    sequences: int
    tokens: int


def fisher_costs(
    bank: GgufBank, windows: Int[Tensor, "windows tokens"], *, sequences: int, tokens: int, seed: int
) -> Fisher:
    """Estimate the cost of every type of every matrix.

    Args:
        windows: text; sequences of so many tokens are cut from it.
        sequences: number of samples (backward passes), each of `tokens` tokens.

    Cost: `sequences` forward and backward passes of `tokens` tokens, and one look at every matrix in every type; a
    float32 for every weight is held beside its gradient.
    """
    bank.restore()
    parts = cut_sequences(windows, sequences, tokens).to(bank.staged.placement.device)
    tokens = parts.shape[1]  # fewer than asked for where windows are shorter
    squares = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in bank.own.items()}
    sizes = []  # of each sequence's gradients, by matrix
    for parameter in bank.parameters.values():
        parameter.requires_grad_(True)
    generator = torch.Generator(device=parts.device).manual_seed(seed)
    try:
        with progress("costs", len(parts), "sequences") as advance:
            for part in parts:
                gradients(bank, part[None], generator)
                sizes.append(add_squares(bank, squares))
                advance()
    finally:
        for parameter in bank.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    costs = torch.stack([quadratic(bank, player, squares[name]) for player, name in enumerate(bank.ladders.names)])
    found = (costs / (2 * tokens * len(parts))).numpy()
    return Fisher(np.asarray(found), relative_error(np.asarray(sizes)), len(parts), tokens)


def cut_sequences(windows: Int[Tensor, "windows length"], count: int, tokens: int) -> Int[Tensor, "sequences tokens"]:
    """Sequences from the beginnings of windows, then from further on, as many as there are at most.

    Where all windows begin with one token (a model's beginning of text), so do all sequences: some models predict
    nothing sensible without it.

    >>> cut_sequences(torch.tensor([[1, 2, 3, 4, 5], [1, 6, 7, 8, 9]]), 3, 3).tolist()
    [[1, 2, 3], [1, 6, 7], [1, 4, 5]]
    >>> cut_sequences(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), 3, 2).tolist()
    [[1, 2], [5, 6], [3, 4]]
    """
    tokens = min(tokens, windows.shape[1])
    first = windows[:, :1]
    if tokens > 1 and len(windows) > 1 and bool((first == first[0]).all()):
        rest = cut_sequences(windows[:, 1:], count, tokens - 1)
        return torch.cat([first[:1].expand(len(rest), 1), rest], dim=1)
    pieces = windows.shape[1] // tokens
    cut = windows[:, : pieces * tokens].view(len(windows), pieces, tokens)
    return cut.transpose(0, 1).reshape(-1, tokens)[:count].contiguous()


def gradients(bank: GgufBank, ids: Int[Tensor, "one tokens"], generator: torch.Generator) -> None:
    """Gradient of the log-probability of labels drawn from the model's own predictions, into every parameter."""
    for parameter in bank.parameters.values():
        parameter.grad = None
    with torch.enable_grad():
        logits = bank.staged.model(input_ids=ids, use_cache=False).logits[0].float()
        log_p = logits.log_softmax(-1)
        labels = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        log_p.gather(-1, labels).sum().backward()


@torch.no_grad()
def add_squares(bank: GgufBank, squares: Mapping[str, Tensor]) -> list[float]:
    """Add the squares of the gradients that are there; returns each matrix's sum of them."""
    found = []
    for name, total in squares.items():
        gradient = bank.parameters[name].grad
        assert gradient is not None, "a player took no part in the forward pass"
        slope = gradient.float()
        total.addcmul_(slope, slope)
        found.append(float(slope.square().sum()))
    return found


@torch.no_grad()
def quadratic(bank: GgufBank, player: int, squares: Tensor) -> Float[Tensor, " rungs"]:
    """Squared differences from the original in each type of a matrix, weighted and summed."""
    name, types = bank.ladders.names[player], bank.ladders.types[player]
    weights, origin = squares.flatten(), bank.own[name].float()
    found = []
    for kind in types:
        difference = bank.decoded(name, kind).float().sub_(origin).square_()
        found.append(torch.dot(weights, difference.flatten()).double())
    rungs = len(bank.ladders.costs.widths)
    return torch.stack([*found, *found[-1:] * (rungs - len(found))]).cpu()


def relative_error(sizes: Float[NDArray[np.float64], "sequences players"]) -> float | None:
    """Standard error of the mean over sequences, relative to it; the median over players.

    What all players share (one sequence moves everything) does not change any choice, so it is taken out.

    >>> relative_error(np.asarray([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]))
    0.0
    """
    if len(sizes) < 2:
        return None
    relative = sizes / np.maximum(sizes.mean(0), 1e-300)
    own = relative / relative.mean(1, keepdims=True)
    return float(np.median(own.std(0, ddof=1)) / np.sqrt(len(sizes)))
