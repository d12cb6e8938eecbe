"""Token ids in, token ids out: batched decoding with a key-value cache and left padding. Knows no text.

Every row's tokens and log-probabilities depend on that row alone (up to rounding): padding is masked,
positions count from a row's own first token, and each sampled row has its own random stream.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Row:
    """One sequence: its prompt and settings, then what was generated.

    Attributes:
        tokens: new ids, the end token included. logprobs: natural, under the unscaled distribution.
        latency_ms: from the start of the batch to this row's last token.
    """

    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False
    latency_ms: float = 0.0

    @property
    def done(self) -> bool:
        return self.stopped or len(self.tokens) >= self.max_tokens


def generate(model: Any, rows: Sequence[Row], *, end_ids: frozenset[int], pad_id: int) -> None:
    """Fill in every row's tokens, log-probabilities and latency.

    Rows that are done leave the batch, and their part of the cache is dropped.
    Cost: one pass over the prompts, then one step a token of the longest answer.
    """
    import torch
    from transformers import DynamicCache

    start = time.perf_counter()
    device = model.device
    width = max(len(row.prompt) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row.prompt)) + row.prompt for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
    mask = mask.to(device)  # [rows, tokens so far]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    streams = {id(row): torch.Generator().manual_seed(row.seed) for row in rows if row.temperature > 0}
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
            chosen = _choose(output.logits[:, -1].float().cpu(), active, streams)
            _record(active, chosen, end_ids, (time.perf_counter() - start) * 1000)
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


def _choose(logits: Any, rows: Sequence[Row], streams: dict[int, Any]) -> list[tuple[int, float]]:
    """(token, log-probability) for each row of logits [rows, vocabulary]."""
    import torch

    logprobs = torch.log_softmax(logits, dim=-1)
    greedy = logits.argmax(dim=-1).tolist()
    chosen = []
    for number, row in enumerate(rows):
        token = greedy[number]
        if row.temperature > 0:
            scaled = torch.softmax(logits[number] / row.temperature, dim=-1)
            token = int(torch.multinomial(scaled, 1, generator=streams[id(row)]))
        chosen.append((token, float(logprobs[number, token])))
    return chosen


def _record(rows: Sequence[Row], chosen: Sequence[tuple[int, float]], end_ids: frozenset[int], now_ms: float) -> None:
    for row, (token, logprob) in zip(rows, chosen, strict=True):
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.stopped = token in end_ids
        row.latency_ms = now_ms
