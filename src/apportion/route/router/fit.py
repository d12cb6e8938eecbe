"""Fits the members of a policy side by side in torch, each on its own questions.

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
from torch.nn import functional

from apportion.core.seeds import derived_seed
from apportion.route.router.draft import Drafted
from apportion.route.router.gate import LATENCY_NODES, TOKEN_NODES, edges
from apportion.route.router.plan import TrainingPlan
from apportion.route.router.policy import (
    COST_GAIN,
    ENCODED,
    WEIGHT_CEILING,
    Layers,
    Singles,
    encode_weights,
    mean_outcome,
)
from apportion.route.router.utility import Costed, Ints


@dataclass(frozen=True, slots=True)
class Fitted:
    """Layers of all members at each check, for the caller to stop early."""

    steps: tuple[int, ...]
    layers: tuple[Layers, ...]


def fit_members(
    inputs: Singles,
    costed: Costed,
    members: list[Ints],
    plan: TrainingPlan,
    seed: int,
    drafted: Drafted | None = None,
) -> Fitted:
    """Fit one member on each set of row numbers; deterministic for a seed (one thread).

    Args:
        inputs: [n, f] standardised features.
        costed: quality and scaled costs of the same n questions, probes counted.
        members: row numbers of each member's questions.
        drafted: with it, a third head learns whether to make the draft and let the full tier decide.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fit(inputs, costed, members, plan, derived_seed(seed, "policy") % 2**31, drafted)
    finally:
        torch.set_num_threads(threads)


def _fit(
    inputs: Singles,
    costed: Costed,
    members: list[Ints],
    plan: TrainingPlan,
    seed: int,
    drafted: Drafted | None,
) -> Fitted:
    draw = torch.Generator().manual_seed(seed)
    x, table, means = torch.from_numpy(inputs), _tables(costed), mean_outcome(costed)
    later = _tables(drafted.costed) if drafted else []
    parameters = _initial(len(members), x.shape[1] + ENCODED, plan.hidden, 3 if drafted else 2, draw)
    optimiser = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.learning_rate, total_steps=plan.steps, pct_start=0.1)
    padded, sizes = _padded(members)
    steps, kept = [0], [_frozen(parameters, plan)]
    for step in range(1, plan.steps + 1):
        places = (torch.rand(len(members), plan.batch, generator=draw) * sizes[:, None]).long()
        drawn = padded.gather(1, places)
        weights = _draw_weights(len(members), plan, costed.has_latency, draw)
        inputs_now = torch.cat([x[drawn], _shown(weights, means, plan)], dim=2)
        logits = _forward(parameters, inputs_now, weights * plan.conditioned)
        after = _after_draft(drafted.columns, later, drawn, weights) if drafted else None
        loss = _loss(logits, [part[drawn] for part in table], weights, costed.columns, plan.head_share, after)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % plan.check_every == 0:
            steps.append(step)
            kept.append(_frozen(parameters, plan))
    return Fitted(tuple(steps), tuple(kept))


def _tables(costed: Costed) -> list[Tensor]:
    """Quality, tokens, latency as [n, 4]; absent strategies get quality 0 and are masked by column."""
    quality = np.where(np.isfinite(costed.quality), costed.quality, 0.0)
    return [torch.from_numpy(part).float() for part in (quality, costed.tokens, costed.latency)]


def _padded(members: list[Ints]) -> tuple[Tensor, Tensor]:
    """[M, longest] row numbers and [M] how many of them count."""
    sizes = torch.tensor([len(rows) for rows in members])
    padded = torch.zeros(len(members), int(sizes.max()), dtype=torch.long)
    for member, rows in enumerate(members):
        padded[member, : len(rows)] = torch.from_numpy(rows)
    return padded, sizes


def _initial(members: int, width: int, hidden: int, heads: int, draw: torch.Generator) -> list[Tensor]:
    shapes = ((width, hidden), (1, hidden), (hidden, hidden), (1, hidden), (hidden, 3 * heads), (1, 3 * heads))
    gains = (width**-0.5, 0.0, hidden**-0.5, 0.0, 0.1 * hidden**-0.5, 0.0)
    return [
        (torch.randn(members, *shape, generator=draw) * gain).requires_grad_()
        for shape, gain in zip(shapes, gains, strict=True)
    ]


def _frozen(parameters: list[Tensor], plan: TrainingPlan) -> Layers:
    """A copy as arrays; without conditioning whatever reads or multiplies the weights becomes 0."""
    w1, b1, w2, b2, w3, b3 = (part.detach().numpy().copy() for part in parameters)
    if not plan.conditioned:
        heads = w3.shape[-1] // 3
        w1[:, -ENCODED:], w3[..., heads:], b3[..., heads:] = 0, 0, 0
    return Layers(w1, b1, w2, b2, w3, b3)


def _draw_weights(members: int, plan: TrainingPlan, has_latency: bool, draw: torch.Generator) -> Tensor:
    """[M, B, 2] token and latency weights: log-uniform from the smallest to the ceiling, some of them 0."""
    shape = (members, plan.batch, 2)
    low, high = np.log(plan.smallest_weight), np.log(WEIGHT_CEILING)
    weights = torch.exp(low + (high - low) * torch.rand(*shape, generator=draw))
    weights = weights * (torch.rand(*shape, generator=draw) >= plan.zero_share)
    if not has_latency:
        weights[..., 1] = 0
    return weights


def _shown(weights: Tensor, means: np.ndarray, plan: TrainingPlan) -> Tensor:
    """[M, B, 6] the weights as the network reads them; zeros when it is not to know them."""
    encoded = encode_weights(weights.reshape(-1, 2).double().numpy(), means)[:, :ENCODED]
    return torch.from_numpy(encoded).float().view(*weights.shape[:2], ENCODED) * plan.conditioned


def _forward(parameters: list[Tensor], inputs: Tensor, weights: Tensor) -> Tensor:
    """[M, B, heads] logits; the same computation as `Layers.logits`."""
    w1, b1, w2, b2, w3, b3 = parameters
    hidden = torch.tanh(torch.baddbmm(b1, inputs, w1))
    hidden = torch.tanh(torch.baddbmm(b2, hidden, w2))
    out = torch.baddbmm(b3, hidden, w3)
    scaled = COST_GAIN * weights
    heads = out.shape[-1] // 3
    tokens, latency = out[..., heads : 2 * heads], out[..., 2 * heads :]
    return out[..., :heads] - scaled[..., :1] * tokens - scaled[..., 1:] * latency


def _after_draft(columns: Ints, table: list[Tensor], drawn: Tensor, weights: Tensor) -> Tensor:
    """[M, B] utility of drafting first, at the decisions of the nearest node of the gate's grid."""
    bounds = (torch.tensor(edges(nodes)) for nodes in (TOKEN_NODES, LATENCY_NODES))
    token, latency = (
        torch.bucketize(weights[..., i].contiguous(), bound, right=True) for i, bound in enumerate(bounds)
    )
    latency = latency.clamp(max=columns.shape[2] - 1)
    chosen = torch.from_numpy(columns)[drawn, token, latency].unsqueeze(-1)
    quality, tokens, times = (part[drawn].gather(-1, chosen)[..., 0] for part in table)
    return quality - weights[..., 0] * tokens - weights[..., 1] * times


def _loss(
    logits: Tensor,
    outcome: list[Tensor],
    weights: Tensor,
    columns: tuple[int, ...],
    head_share: float,
    after_draft: Tensor | None,
) -> Tensor:
    """Sum over members of the mean loss over their batch (members do not share parameters)."""
    quality, tokens, latency = outcome
    values = quality - weights[..., :1] * tokens - weights[..., 1:] * latency
    rag, cot = logits[..., 0], logits[..., 1]
    joint = torch.stack([torch.zeros_like(rag), rag, cot, rag + cot], dim=-1)
    p = functional.softmax(joint[..., list(columns)], dim=-1)
    present = values[..., list(columns)]
    best = present.amax(dim=-1)
    got = (p * present).sum(dim=-1)
    heads = _head_losses(logits[..., :2], values, columns)
    if after_draft is not None:
        worth = after_draft - got.detach()
        asks = torch.sigmoid(logits[..., 2])
        heads = heads * (1 - asks.detach()) + _weighted_entropy(logits[..., 2], worth)
        got = got + asks * (after_draft - got)
    scaled = (best - got + head_share * heads) / (1 + weights.sum(dim=-1))
    return scaled.mean(dim=1).sum()


def _weighted_entropy(logits: Tensor, worth: Tensor) -> Tensor:
    """Cross-entropy towards yes where it is worth something, weighted by how much."""
    target = (worth > 0).float()
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return worth.abs() * loss


def _head_losses(logits: Tensor, values: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Cross-entropy of each head weighted by what its decision is worth while the other acts as now."""
    p_rag, p_cot = torch.sigmoid(logits.detach()).unbind(-1)
    # per head: (strategy without it, strategy with it, how probable the other head makes this pair)
    pairs = (
        ((0, 1, 1 - p_cot), (2, 3, p_cot)),
        ((0, 2, 1 - p_rag), (1, 3, p_rag)),
    )
    total = torch.zeros_like(logits[..., 0])
    for head, sides in enumerate(pairs):
        worth = torch.zeros_like(total)
        for off, on, share in sides:
            if off in columns and on in columns:
                worth = worth + share * (values[..., on] - values[..., off])
        total = total + _weighted_entropy(logits[..., head], worth)
    return total
