"""Token ids in, token ids out, for any causal LM of transformers: one batch, left padding, a growing cache.

The way for models whose cache is more than keys and values of every token (sliding windows, linear attention).
Every row's tokens and log-probabilities depend on that row alone (up to rounding): padding is masked,
positions count from a row's own first token, and each sampled row has its own random stream.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Row:
    """One sequence: its prompt and settings, then what was generated.

    Attributes:
        ends: whether new tokens hold a stop sequence; None where there is none.
        tokens: new ids, the end token included. logprobs: natural, under the unscaled distribution.
        margins: log-probability of the likeliest token minus that of the second, in nats.
        issued: tokens whose steps were begun; ahead of `tokens` where results are read later.
        started_s: when its prompt was begun, by `time.perf_counter`. latency_ms: from then to its last token.
        shared_tokens: prompt tokens whose keys and values were computed once for several rows.
    """

    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    ends: Callable[[Sequence[int]], bool] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    stopped: bool = False
    issued: int = 0
    started_s: float = 0.0
    latency_ms: float = 0.0
    shared_tokens: int = 0
    stream: torch.Generator | None = None

    @property
    def done(self) -> bool:
        return self.stopped or len(self.tokens) >= self.max_tokens

    def restart(self) -> None:
        """Forget what was generated: its batch did not fit, and a smaller one begins again."""
        self.tokens, self.logprobs, self.margins = [], [], []
        self.stopped, self.issued, self.latency_ms, self.shared_tokens, self.stream = False, 0, 0.0, 0, None

    def take(self, token: int, logprob: float, margin: float, end_ids: frozenset[int]) -> None:
        """Append one token, chosen just now."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.margins.append(margin)
        self.stopped = token in end_ids or (self.ends is not None and self.ends(self.tokens))
        self.latency_ms = (time.perf_counter() - self.started_s) * 1000


def likeliest(logits: Tensor) -> Tensor:
    """[3, rows] in float64 of logits [rows, vocabulary]: greedy token, its log-probability, its margin (nats).

    Two maxima, since `topk` sorts on a GPU; of equal logits the first token is taken.
    """
    logits = logits.float()
    best, token = logits.max(dim=-1)
    second = logits.scatter(1, token[:, None], float("-inf")).amax(dim=-1)
    return torch.stack([token.double(), (best - logits.logsumexp(dim=-1)).double(), (best - second).double()])


def choose(rows: Sequence[Row], best: Tensor, logits: Tensor) -> list[tuple[int, float, float]]:
    """(token, log-probability, margin) for each row, from `likeliest` and, where a row is sampled, its logits."""
    chosen = [(int(token), logprob, margin) for token, logprob, margin in best.t().tolist()]
    for number, row in enumerate(rows):
        if row.temperature > 0:
            chosen[number] = (*_sample(row, logits[number]), chosen[number][2])
    return chosen


def _sample(row: Row, logits: Tensor) -> tuple[int, float]:
    if row.stream is None:
        row.stream = torch.Generator().manual_seed(row.seed)
    scores = logits.float().cpu()
    token = int(torch.multinomial(torch.softmax(scores / row.temperature, dim=-1), 1, generator=row.stream))
    return token, float(torch.log_softmax(scores, dim=-1)[token])


def generate(model: Any, rows: Sequence[Row], *, end_ids: frozenset[int], pad_id: int) -> None:
    """Fill in every row's tokens, log-probabilities and latency.

    Rows that are done leave the batch, and their part of the cache is dropped.
    Cost: one pass over the prompts, then one step a token of the longest answer.
    """
    from transformers import DynamicCache

    for row in rows:
        row.started_s = time.perf_counter()
    device = model.device
    width = max(len(row.prompt) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row.prompt)) + row.prompt for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
    mask = mask.to(device)  # [rows, tokens so far]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    active = list(rows)
    with torch.inference_mode():
        while active:
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1]
            for row, chosen in zip(active, choose(active, likeliest(logits).cpu(), logits), strict=True):
                row.take(*chosen, end_ids)
            kept = [number for number, row in enumerate(active) if not row.done]
            if len(kept) < len(active):
                if not kept:
                    return
                cache.batch_select_indices(torch.tensor(kept, device=device))
                mask, positions = mask[kept], positions[kept]
                active = [active[number] for number in kept]
            ids = torch.tensor([[row.tokens[-1]] for row in active], device=device)
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions = positions[:, -1:] + 1
