"""What every type of every matrix costs alone, of all of them at once, from a few backward passes.

To second order the KL from the model's own predictions is that of a quadratic form, the Fisher information:

    KL(W + D) = 1/2 E[<g, D>^2],   g the gradient of log p(y) at W, y drawn from the model's own predictions

For one sequence, g may be the gradient of the sum over its tokens: gradients of different tokens are uncorrelated,
since each y is drawn from its own prediction. So S backward passes give S unbiased samples of the cost of every pair
of matrix and type, with a relative variance of 2/S (chi-square). Measured alone each pair takes a forward pass.
Source: the identity is standard (Martens, arXiv 1412.1193); its use for choosing types is ours.
"""

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
        sequences, tokens: how many samples, and of how many tokens each.
    """

    costs: Float[NDArray[np.float64], "players rungs"]
    sequences: int
    tokens: int


def fisher_costs(
    bank: GgufBank, windows: Int[Tensor, "windows tokens"], *, sequences: int, tokens: int, seed: int
) -> Fisher:
    """Estimate the cost of every type of every matrix.

    Args:
        windows: text; sequences of so many tokens are cut from it.
        sequences: number of samples (backward passes), each of `tokens` tokens.

    Cost: `sequences` forward and backward passes of `tokens` tokens, and an inner product with every matrix in every
    type for each.
    """
    bank.restore()
    parts = cut_sequences(windows, sequences, tokens).to(bank.staged.placement.device)
    tokens = parts.shape[1]  # fewer than asked for where windows are shorter
    names = bank.ladders.names
    totals = torch.zeros(len(names), len(bank.ladders.costs.widths), dtype=torch.float64)
    for parameter in bank.parameters.values():
        parameter.requires_grad_(True)
    generator = torch.Generator(device=parts.device).manual_seed(seed)
    try:
        with progress("costs", len(parts), "sequences") as advance:
            for part in parts:
                gradients(bank, part[None], generator)
                for player, name in enumerate(names):
                    totals[player] += squares(bank, player, name) / (2 * tokens)
                advance()
    finally:
        for parameter in bank.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    return Fisher(np.asarray((totals / len(parts)).numpy()), len(parts), tokens)


def cut_sequences(windows: Int[Tensor, "windows tokens"], count: int, tokens: int) -> Int[Tensor, "count tokens"]:
    """Sequences from the beginnings of windows, then from further on, as many as there are at most."""
    tokens = min(tokens, windows.shape[1])
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
def squares(bank: GgufBank, player: int, name: str) -> Float[Tensor, " rungs"]:
    """Squared inner products of a matrix's gradient with its difference from the original, in each type."""
    types, own = bank.ladders.types[player], bank.own[name]
    gradient = bank.parameters[name].grad
    assert gradient is not None, "a player took no part in the forward pass"
    slope, origin = gradient.float().flatten(), own.float()
    found = []
    for kind in types:
        difference = bank.decoded(name, kind).float().sub_(origin)  # first: both products would cancel
        found.append(torch.dot(slope, difference.flatten()).double() ** 2)
    rungs = len(bank.ladders.costs.widths)
    return torch.stack([*found, *found[-1:] * (rungs - len(found))]).cpu()
