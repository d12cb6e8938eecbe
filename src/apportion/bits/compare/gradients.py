"""The gradient of the loss with respect to every linear's weight, for scores that need it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from apportion.core.device import free_memory, within_memory
from apportion.core.errors import OutOfMemoryError
from apportion.core.progress import progress
from apportion.models.parameters import held_in
from apportion.models.staged import StagedModel

BATCH_TOKENS = {"cpu": 1024, "cuda": 2048}
LEAVE_OUT = "leave llm-mq out of --methods, use smaller --window-tokens, or --device cpu; into another --out"


def weight_gradients(
    staged: StagedModel, windows: Int[Tensor, "windows tokens"]
) -> dict[str, Float[Tensor, "rows columns"]]:
    """d(mean NLL per token) / dW of every linear of every block, at the checkpoint's own weights, in float32.

    The model's own loss, summed over batches with each batch's share of the windows; its parameters are afterwards the
    tensors that they were before, in the same place. Where memory runs out it begins again with half as many windows
    at once, and the model's `given_up` says so.

    Raises:
        OutOfMemoryError: one window does not fit, or not the copy.

    Cost: one forward and one backward pass over the text; one float32 copy of the weights beside them and one of the
    gradients in memory.
    """
    device = staged.placement.device
    step = max(1, min(len(windows), BATCH_TOKENS[torch.device(device).type] // windows.shape[1]))

    def shrink() -> None:
        nonlocal step
        if step == 1:
            place = f"the gradient of one window of {windows.shape[1]} tokens"
            raise OutOfMemoryError(f"memory of {device} ran out at {place}", LEAVE_OUT)
        for weight in weights.values():  # a backward pass that was cut off may have reached some of them
            weight.grad = None
        step //= 2
        free_memory(device)
        staged.given_up.append(f"gradients of {step} windows at once")

    with differentiable(staged) as weights:
        return within_memory(lambda: summed(staged, weights, windows, step), shrink)


def summed(
    staged: StagedModel, weights: Mapping[str, nn.Parameter], windows: Int[Tensor, "windows tokens"], step: int
) -> dict[str, Float[Tensor, "rows columns"]]:
    """`weight_gradients`, so many windows at once."""
    with progress("gradients", len(windows), "windows") as advance:
        for part in windows.split(step):
            ids = part.to(staged.placement.device)
            loss = staged.model(input_ids=ids, labels=ids, use_cache=False).loss
            (loss * (len(part) / len(windows))).backward()
            advance(len(part))
    return {path: weight.grad.detach() for path, weight in weights.items() if weight.grad is not None}


@contextmanager
def differentiable(staged: StagedModel) -> Iterator[dict[str, nn.Parameter]]:
    """The model in float32, its blocks' linear weights asking for gradients; undone on leaving.

    Raises:
        OutOfMemoryError: there is no room for the float32 copy.
    """
    staged.restore()
    weights: dict[str, nn.Parameter] = {path: staged.model.get_submodule(path).weight for path in staged.originals}
    with ExitStack() as stack:

        def refuse() -> None:
            place = "a copy of the weights in float32, whose gradients are asked for"
            raise OutOfMemoryError(f"memory of {staged.placement.device} ran out at {place}", LEAVE_OUT)

        within_memory(lambda: stack.enter_context(held_in(staged.model, torch.float32)), refuse)
        for weight in weights.values():
            weight.requires_grad_(True)
        try:
            with torch.enable_grad():
                yield weights
        finally:
            for weight in weights.values():
                weight.grad = None
                weight.requires_grad_(False)
