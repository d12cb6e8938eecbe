"""Fits the members of a policy side by side in torch, each on its own questions; early stop on regret.

Loss per question and drawn weights, with p the joint of the two heads over the strategies present:

    regret    sum over s of p(s) * (max U - U(s))
    heads     for each head, cross-entropy towards the side of higher utility, weighted by the difference,
              the other head acting as it does now (no gradient through it)
    loss      (regret + head_share * heads) / (1 + w_tok + w_lat)

The first is what is measured, and is consistent for a factorised policy (its optimum is a vertex), but flat
where heads are confident and wrong; the second has the same fixed points and does not go flat.     [ours]
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from apportion.core.seeds import derived_seed
from apportion.route.policy import WEIGHT_CEILING, Layers, Singles, choose
from apportion.route.utility import Costed, Ints, Weights, utility


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How members are fitted. `folds` x `seeds` members; weights drawn log-uniformly, 0 among them."""

    hidden: int = 32
    folds: int = 5
    seeds: int = 2
    steps: int = 600
    check_every: int = 20
    batch: int = 256
    learning_rate: float = 0.005
    weight_decay: float = 0.03
    head_share: float = 0.5
    zero_share: float = 0.15
    smallest_weight: float = 0.01
    conditioned: bool = True


@dataclass(frozen=True, slots=True)
class Fitted:
    """Layers of all members at each check: checks x Layers, for the caller to stop early."""

    steps: tuple[int, ...]
    layers: tuple[Layers, ...]


def fit_members(
    inputs: Singles, costed: Costed, members: list[Ints], plan: TrainingPlan, seed: int
) -> Fitted:
    """Fit one member on each set of row numbers.

    Args:
        inputs: [n, f] standardised features.
        costed: quality and scaled costs of the same n questions, probes counted.
        members: row numbers of each member's questions.

    Returns:
        The layers at every check. Deterministic for a seed on one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fit(inputs, costed, members, plan, derived_seed(seed, "policy") % 2**31)
    finally:
        torch.set_num_threads(threads)


def _fit(inputs: Singles, costed: Costed, members: list[Ints], plan: TrainingPlan, seed: int) -> Fitted:
    draw = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(inputs)
    table = _tables(costed)
    parameters = _initial(len(members), x.shape[1] + 2, plan.hidden, draw)
    optimiser = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, plan.learning_rate, total_steps=plan.steps, pct_start=0.1
    )
    sizes = torch.tensor([len(rows) for rows in members])
    padded = torch.zeros(len(members), int(sizes.max()), dtype=torch.long)
    for member, rows in enumerate(members):
        padded[member, : len(rows)] = torch.from_numpy(rows)
    steps, kept = [0], [_frozen(parameters)]
    for step in range(1, plan.steps + 1):
        places = (torch.rand(len(members), plan.batch, generator=draw) * sizes[:, None]).long()
        rows = padded.gather(1, places)
        weights = _draw_weights(rows.shape, plan, costed.has_latency, draw)
        loss = _loss(parameters, x[rows], [part[rows] for part in table], weights, costed.columns, plan)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % plan.check_every == 0:
            steps.append(step)
            kept.append(_frozen(parameters))
    return Fitted(tuple(steps), tuple(kept))


def _tables(costed: Costed) -> list[Tensor]:
    """Quality, tokens, latency as [n, 4]; absent strategies get quality 0 and are masked by column."""
    quality = np.where(np.isfinite(costed.quality), costed.quality, 0.0)
    return [torch.from_numpy(part).float() for part in (quality, costed.tokens, costed.latency)]


def _initial(members: int, width: int, hidden: int, draw: torch.Generator) -> list[Tensor]:
    shapes = ((width, hidden), (1, hidden), (hidden, hidden), (1, hidden), (hidden, 2), (1, 2))
    gains = (width**-0.5, 0.0, hidden**-0.5, 0.0, 0.1 * hidden**-0.5, 0.0)
    return [
        (torch.randn(members, *shape, generator=draw) * gain).requires_grad_()
        for shape, gain in zip(shapes, gains, strict=True)
    ]


def _frozen(parameters: list[Tensor]) -> Layers:
    return Layers(*(part.detach().numpy().copy() for part in parameters))


def _draw_weights(shape: torch.Size, plan: TrainingPlan, has_latency: bool, draw: torch.Generator) -> Tensor:
    """[M, B, 2] token and latency weights: log-uniform from the smallest to the ceiling, some of them 0."""
    low, high = np.log(plan.smallest_weight), np.log(WEIGHT_CEILING)
    weights = torch.exp(low + (high - low) * torch.rand(*shape, 2, generator=draw))
    weights = weights * (torch.rand(*shape, 2, generator=draw) >= plan.zero_share)
    if not has_latency:
        weights[..., 1] = 0
    return weights


def _forward(parameters: list[Tensor], inputs: Tensor) -> Tensor:
    w1, b1, w2, b2, w3, b3 = parameters
    hidden = torch.tanh(torch.baddbmm(b1, inputs, w1))
    hidden = torch.tanh(torch.baddbmm(b2, hidden, w2))
    return torch.baddbmm(b3, hidden, w3)


def _loss(
    parameters: list[Tensor],
    x: Tensor,
    outcome: list[Tensor],
    weights: Tensor,
    columns: tuple[int, ...],
    plan: TrainingPlan,
) -> Tensor:
    """Sum over members of the mean loss over their batch (members do not share parameters)."""
    quality, tokens, latency = outcome
    shown = torch.log1p(weights / 0.02) / np.log1p(1 / 0.02)
    logits = _forward(parameters, torch.cat([x, shown * plan.conditioned], dim=2))
    values = quality - weights[..., :1] * tokens - weights[..., 1:] * latency
    zero = torch.zeros_like(logits[..., 0])
    joint = torch.stack([zero, logits[..., 0], logits[..., 1], logits.sum(dim=-1)], dim=-1)
    p = F.softmax(joint[..., list(columns)], dim=-1)
    present = values[..., list(columns)]
    expected = (p * (present.amax(dim=-1, keepdim=True) - present)).sum(dim=-1)
    heads = _head_losses(logits, values, columns)
    scaled = (expected + plan.head_share * heads) / (1 + weights.sum(dim=-1))
    return scaled.mean(dim=1).sum()


def _head_losses(logits: Tensor, values: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Cross-entropy of each head weighted by what its decision is worth while the other acts as now."""
    p_rag, p_cot = torch.sigmoid(logits.detach()).unbind(-1)
    pairs = {
        0: (((0, 1), 1 - p_cot), ((2, 3), p_cot)),
        1: (((0, 2), 1 - p_rag), ((1, 3), p_rag)),
    }
    total = torch.zeros_like(logits[..., 0])
    for head, sides in pairs.items():
        worth = sum(
            (share * (values[..., on] - values[..., off]))
            for (off, on), share in sides
            if off in columns and on in columns
        )
        if isinstance(worth, Tensor):
            loss = F.binary_cross_entropy_with_logits(
                logits[..., head], (worth > 0).float(), reduction="none"
            )
            total = total + worth.abs() * loss
    return total


def regret_by_check(
    fitted: Fitted, inputs: Singles, costed: Costed, held: list[Ints], grid: list[Weights]
) -> np.ndarray:
    """[checks, members] mean regret on each member's held-out rows over the grid, scaled as in training."""
    found = np.zeros((len(fitted.steps), len(held)))
    for check, layers in enumerate(fitted.layers):
        for member, rows in enumerate(held):
            one = layers.select(np.array([member]))
            found[check, member] = _held_regret(one, inputs[rows], costed.select(rows), grid)
    return found


def _held_regret(layers: Layers, inputs: Singles, costed: Costed, grid: list[Weights]) -> float:
    from apportion.route.policy import encode_weights

    total = 0.0
    for weights in grid:
        values = utility(costed, weights)
        shown = encode_weights(np.array([[weights.token, weights.latency]])).astype(np.float32)
        rows = np.concatenate([inputs, shown.repeat(len(inputs), axis=0)], axis=1)
        chosen = choose(layers.logits(rows).mean(axis=0), costed.columns)
        lost = values.max(axis=1) - values[np.arange(len(values)), chosen]
        total += float(lost.mean()) / (1 + weights.token + weights.latency)
    return total / len(grid)
