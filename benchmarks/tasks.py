"""What codes may be taught besides full precision's predictions on texts as they are, for `learners.py`."""

import torch
from torch import Tensor, nn

from apportion.bits.rounding.descent import LOSS_SCALE
from apportion.bits.rounding.distil import Predictions, parts, through_blocks, through_head
from apportion.bits.rounding.lesson import Lesson
from apportion.models.staged import StagedModel


class Resampled(Predictions):
    """Each time a window is met, a share of its tokens is what full precision might have had there instead.

    Cost: two forward passes of full precision a step.
    """

    def __init__(self, staged: StagedModel, lesson: Lesson, share: float = 0.3) -> None:
        super().__init__(staged, lesson)
        self.share = share

    @torch.no_grad()
    def inputs(self, chosen: Tensor) -> tuple[Tensor, ...]:
        staged = self.staged
        ids = self.lesson.windows[chosen].to(staged.placement.device)
        other = torch.rand(ids[:, 1:].shape, device=ids.device) < self.share
        wanted = staged.last_hidden(ids)[:, :-1][other]
        new = [drawn(staged, wanted[part]) for part in parts(staged, len(wanted))]
        ids[:, 1:][other] = torch.cat(new).to(ids)
        hidden, calls = staged.begin(ids)
        self.calls.setdefault(len(chosen), calls)
        return hidden, staged.last_hidden(ids).to(hidden.device)


def drawn(staged: StagedModel, hidden: Tensor) -> Tensor:
    """A token of each distribution."""
    logits = staged.logits(hidden[None])[0].float()
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)


class WithStates(Predictions):
    """Predictions, and after every block the hidden state of full precision: the distance of each token's to it, as a
    share of its norm, squared.

    Cost: one forward pass of full precision a step.
    """

    def __init__(self, staged: StagedModel, lesson: Lesson, weight: float = 1.0) -> None:
        super().__init__(staged, lesson)
        self.weight = weight

    @torch.no_grad()
    def inputs(self, chosen: Tensor) -> tuple[Tensor, ...]:
        hidden, teacher = super().inputs(chosen)
        states = through_blocks(self.staged, {}, hidden, self.calls[len(chosen)])
        return hidden, teacher, *states

    def gradient(self, weights: dict[str, Tensor], inputs: tuple[Tensor, ...], share: float) -> Tensor:
        begun, teacher, *wanted = inputs
        staged = self.staged
        states = list(through_blocks(staged, weights, begun, self.calls[len(begun)]))
        hidden, labels = (item[:, :-1].flatten(0, 1) for item in (states[-1], teacher))
        total, slope = through_head(staged, hidden, labels, share)
        far = torch.stack([distance(own, full) for own, full in zip(states, wanted, strict=True)]).mean()
        scale = share * LOSS_SCALE.get(staged.compute_dtype, 1.0)
        torch.autograd.backward([hidden, far * (self.weight * scale)], [slope, None])
        return total


class WithOutside(Predictions):
    """Predictions of a model whose embedding and head, one and the same, are learned too."""

    def inputs(self, chosen: Tensor) -> tuple[Tensor, ...]:
        hidden, teacher = super().inputs(chosen)
        return hidden, teacher, self.lesson.windows[chosen].to(hidden.device)

    def gradient(self, weights: dict[str, Tensor], inputs: tuple[Tensor, ...], share: float) -> Tensor:
        begun, teacher, ids = inputs
        staged = self.staged
        inside = f"{staged.layout.prefix}."
        (learned,) = (weight for path, weight in weights.items() if not path.startswith(inside))
        within = {path: weight for path, weight in weights.items() if path.startswith(inside)}
        hidden = nn.functional.embedding(ids, learned)
        *_, last = through_blocks(staged, within, hidden, self.calls[len(begun)])
        flat, wanted = (states[:, :-1].flatten(0, 1) for states in (last, teacher))
        norm = staged.model.get_submodule(staged.layout.prefix.rpartition(".")[0]).norm
        total, slope = through_head(staged, flat, wanted, share, lambda states: norm(states) @ learned.T)
        flat.backward(slope)
        return total


def distance(own: Tensor, full: Tensor) -> Tensor:
    """Mean over tokens of the squared distance over the squared norm."""
    own, full = own.float(), full.float()
    return ((own - full).square().sum(-1) / full.square().sum(-1)).mean()
