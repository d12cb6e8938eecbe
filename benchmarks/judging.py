"""Perplexity, KL divergence and same top token of the weights in place, beside full precision's predictions."""

import math

import torch
from torch import Tensor

from apportion.core.artifact import Json
from apportion.models.staged import StagedModel

ROWS = 2048  # tokens whose two distributions are made at once


class Judge:
    """Text that no choice is made on, and full precision's hidden states on it (asked for once).

    Args:
        windows: token ids.
    """

    def __init__(self, staged: StagedModel, windows: Tensor) -> None:
        staged.restore()
        self.staged, self.windows, self.teacher = staged, windows, staged.last_hidden(windows)

    @torch.inference_mode()
    def judge(self, other: StagedModel | None = None) -> Json:
        """Perplexity, mean and 99 % KL in nats per token, share of tokens with full precision's most likely token.

        Args:
            other: another model of the same tokenizer and head; else the one asked, with the weights in place now.
        """
        staged, divergences, same = other or self.staged, [], 0
        nll = float(staged.window_nll(self.windows).mean())
        hidden = staged.last_hidden(self.windows)[:, :-1].flatten(0, 1)
        for ours, theirs in zip(
            hidden.split(ROWS), self.teacher[:, :-1].flatten(0, 1).to(hidden.device).split(ROWS), strict=True
        ):
            found = staged.logits(ours[None])[0].float().log_softmax(-1)
            wanted = self.staged.own_logits(theirs[None])[0].float().log_softmax(-1)
            divergences.append((wanted.exp() * (wanted - found)).sum(-1))
            same += int((found.argmax(-1) == wanted.argmax(-1)).sum())
        kl = torch.cat(divergences)
        return {
            "perplexity": math.exp(nll), "kl": float(kl.mean()), "kl_99": float(kl.quantile(0.99)),
            "same_top": same / len(kl),
        }  # fmt: skip
