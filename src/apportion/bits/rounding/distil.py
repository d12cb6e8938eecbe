"""All codes of a plan learned together, end to end: the rounded model is to predict what full precision predicts.

The loss is the cross-entropy to full precision's predictions (soft labels), which is least where both agree. Logits
are made in parts of at most LOGIT_BYTES, each with its own backward pass to the hidden states: with a vocabulary of
150 thousand, logits and their gradients would otherwise be most of the memory.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from apportion.bits.rounding.descent import LOSS_SCALE
from apportion.bits.rounding.lesson import Lesson
from apportion.models.calls import Call
from apportion.models.loss import teacher_slope
from apportion.models.staged import StagedModel

LOGIT_BYTES = {"cpu": 256 << 20, "cuda": 1 << 29}  # logits in flight, as float32; on a CPU four copies of them
WEIGHT_BYTES = 32  # of learning one weight: position, its gradient, two moments of Adam; decoded, its gradient; copies


class Predictions:
    """`descent.Task` of a lesson: predict as full precision does.

    What the blocks are called with besides hidden states is the same for all texts of one shape (`StagedModel.verify`
    has seen to that), so it is kept.
    """

    def __init__(self, staged: StagedModel, lesson: Lesson) -> None:
        self.staged, self.lesson = staged, lesson
        self.calls: dict[int, tuple[Call, ...]] = {}

    def inputs(self, chosen: Int[Tensor, " part"]) -> tuple[Tensor, ...]:
        """Hidden states before block 0, and the teacher's after the last, of these windows."""
        hidden, calls = self.staged.begin(self.lesson.windows[chosen])
        self.calls.setdefault(len(chosen), calls)
        teacher = self.lesson.teacher
        wanted = self.answer(hidden, calls) if teacher is None else teacher[chosen.to(teacher.device)]
        return hidden, wanted.to(hidden.device)

    @torch.no_grad()
    def answer(self, begun: Float[Tensor, "part tokens hidden"], calls: Sequence[Call]) -> Tensor:
        """What the checkpoint's own weights make of a part, of which nothing is kept."""
        return deque(through_blocks(self.staged, {}, begun, calls), maxlen=1).pop()

    def gradient(self, weights: dict[str, Tensor], inputs: tuple[Tensor, ...], share: float) -> Tensor:
        """See `predictions_gradient`."""
        hidden, teacher = inputs
        return predictions_gradient(self.staged, weights, hidden, self.calls[len(hidden)], teacher, share)


def predictions_gradient(
    staged: StagedModel,
    weights: dict[str, Tensor],
    begun: Float[Tensor, "windows tokens hidden"],
    calls: Sequence[Call],
    teacher: Float[Tensor, "windows tokens hidden"],
    share: float,
) -> Tensor:
    """Cross-entropy to the teacher, nats per token, times `share`; its gradient is added to the weights'.

    Args:
        weights: by module path; leaves that want a gradient.
        begun, calls: hidden states before block 0, and the call of every block (`StagedModel.begin`).
        teacher: full precision's hidden states after the last block.
    """
    last = deque(through_blocks(staged, weights, begun, calls), maxlen=1).pop()
    hidden, wanted = (states[:, :-1].flatten(0, 1) for states in (last, teacher))
    loss, slope = through_head(staged, hidden, wanted, share)
    hidden.backward(slope)
    return loss


def through_head(
    staged: StagedModel,
    hidden: Float[Tensor, "tokens hidden"],
    teacher: Float[Tensor, "tokens hidden"],
    share: float,
    head: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "tokens hidden"] | None]:
    """Cross-entropy to the teacher times `share`, and its gradient for the hidden states after the last block.

    Args:
        head: makes logits of hidden states; the model's own without it. The teacher's is the model's own.
    """
    head = head or staged.head
    leaf = hidden.detach().requires_grad_()
    total = torch.zeros((), device=hidden.device)
    factor = share * LOSS_SCALE.get(staged.compute_dtype, 1.0) / len(leaf)
    for part in parts(staged, len(leaf)):
        logits = head(leaf[None, part])
        loss, slope = teacher_slope(logits, staged.logits(teacher[None, part]), factor)
        logits.backward(slope)
        total += loss * (share / len(leaf))
    return total, leaf.grad


def through_blocks(
    staged: StagedModel,
    weights: dict[str, Tensor],
    hidden: Float[Tensor, "windows tokens hidden"],
    calls: Sequence[Call],
) -> Iterator[Float[Tensor, "windows tokens hidden"]]:
    """Hidden states after every block with these weights, differentiable."""
    inside = f"{staged.layout.prefix}."
    own: list[dict[str, Tensor]] = [{} for _ in calls]
    for path, weight in weights.items():
        block, _, name = path.removeprefix(inside).partition(".")
        own[int(block)][f"{name}.weight"] = weight
    for module, put, (args, kwargs) in zip(staged.blocks, own, calls, strict=True):
        out = functional_call(module, put, (hidden, *args), kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
        yield hidden


def parts(staged: StagedModel, tokens: int) -> Iterator[slice]:
    """Tokens whose logits are made at once."""
    vocabulary = int(staged.model.config.get_text_config().vocab_size)
    most = max(1, LOGIT_BYTES[torch.device(staged.placement.device).type] // (4 * vocabulary))
    for start in range(0, tokens, most):
        yield slice(start, start + most)
