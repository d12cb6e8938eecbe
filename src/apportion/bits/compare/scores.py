"""Baselines: isolated scores of players, each as a `Sensitivity` without pairs, so that one allocator serves all.

Sign: a choice's cost is what demoting the player is thought to lose, so higher = keep more bits. The allocator
minimises the sum of costs within bytes; only scores that are not negative can be summed that way, so LIM and ZD
are shifted by one, which leaves their order unchanged.

LIM, ZD and activation are densities: their authors sort players by them and demote from the smallest. Multiplied
by the player's share of the weights, the allocator ranks by the same density per byte; with blocks of equal size
the factor is one. [ours]
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.compare.activations import block_flow
from apportion.bits.compare.gradients import weight_gradients
from apportion.bits.game import Assignment, Game, Player, Samples, WeightBank
from apportion.bits.plan import Sensitivity, choices_of, surrogate, two_width
from apportion.core.arrays import NDArray
from apportion.models.text import Windows

Array = NDArray[np.float64]


def isolated(
    samples: Samples, method: str, linear: Float[Array, " choices"], details: dict[str, object]
) -> Sensitivity:
    """A surrogate without pairs."""
    return surrogate(samples, method, linear, np.zeros((len(linear), len(linear))), details)


def by_density(samples: Samples, method: str, density: Float[Array, " players"]) -> Sensitivity:
    """Cost of the lowest width = density times relative size; widths between are interpolated (`two_width`)."""
    share = samples.costs.parameters / samples.costs.parameters.mean()
    return isolated(samples, method, two_width(samples, density * share), {"density": density})


def by_block(players: Sequence[Player], values: Float[Array, " blocks"]) -> Float[Array, " players"]:
    """Every player's block's value."""
    return np.asarray([values[player.block] for player in players], dtype=np.float64)


def llm_mq(bank: WeightBank, calibration: Windows, samples: Samples) -> Sensitivity:
    """First-order loss of rounding: s(i, b) = sum over weight tensors of |g . (W - Q_b(W))|, in nats per token.

    The absolute value is of each tensor's whole inner product. A choice costs s(i, b) - s(i, highest), so that
    the allocator minimises the summed score. Source: LLM-MQ (Li et al., 2023), as CoopQ uses it.
    """
    gradients = weight_gradients(bank.staged, calibration.windows)
    table = np.asarray(
        [
            [first_order(bank, gradients, player, column) for column in range(len(samples.costs.widths))]
            for player in samples.costs.players
        ]
    )
    return isolated(samples, "llm-mq", (table[:, :-1] - table[:, -1:]).ravel(), {"score": table})


def first_order(bank: WeightBank, gradients: dict[str, Tensor], player: Player, column: int) -> float:
    """|g . (W - Q_b(W))| summed over a player's tensors."""
    total = 0.0
    for path in player.paths(bank.staged.layout):
        gradient = gradients[path]
        error = bank.staged.originals[path].to(gradient) - bank.weight(path, column).to(gradient)
        total += abs(float((gradient.double() * error.double()).sum()))
    return total


def lim(bank: WeightBank, calibration: Windows, samples: Samples) -> Sensitivity:
    """1 - cosine between a block's input and output: a block that changes its input little matters little.

    Source: LIM score of layer-wise quantization (Dumitru et al., 2024): minus the cosine; here shifted by one.
    """
    flow = block_flow(bank.staged, calibration.windows)
    return by_density(samples, "lim", by_block(samples.costs.players, 1 - flow.cosine))


def activation(bank: WeightBank, calibration: Windows, samples: Samples) -> Sensitivity:
    """Frobenius norm of the block's output."""
    flow = block_flow(bank.staged, calibration.windows)
    return by_density(samples, "activation", by_block(samples.costs.players, flow.norm))


def zd(bank: WeightBank, samples: Samples, *, two_sided: bool = False) -> Sensitivity:
    """1 - share of a player's weights with z-score > 1 (|z| > 1 if two-sided); smaller share = more important.

    Source: ZD score of layer-wise quantization (Dumitru et al., 2024).
    """
    shares = [share_above(player_weights(bank, player), two_sided) for player in samples.costs.players]
    return by_density(samples, "zd", 1 - np.asarray(shares))


def player_weights(bank: WeightBank, player: Player) -> Float[Tensor, " weights"]:
    """All weights of a player in a row, as they are in the checkpoint."""
    staged = bank.staged
    return torch.cat([staged.originals[path].flatten() for path in player.paths(staged.layout)])


def share_above(weights: Float[Tensor, " weights"], two_sided: bool) -> float:
    """Share of weights more than one standard deviation above the mean (or away from it)."""
    values = weights.float()
    z = (values - values.mean()) / values.std(correction=0).clamp_min(1e-30)
    return float(((z.abs() if two_sided else z) > 1).double().mean())


def one_at_a_time(game: Game, samples: Samples) -> Sensitivity:
    """Measured change of the NLL when one player alone gets a lower width, for every player and width.

    Cost: players * (widths - 1) evaluations.
    """
    costs = samples.costs
    high = costs.uniform(-1)
    wanted = [alone(high, player, column) for player, column in choices_of(*costs.bytes.shape).tolist()]
    found = game.values([high, *wanted]).mean(1)
    return isolated(samples, "one-at-a-time", found[1:] - found[0], {"evaluations": len(wanted)})


def alone(high: Assignment, player: int, column: int) -> Assignment:
    """One player at another width."""
    return (*high[:player], column, *high[player + 1 :])
