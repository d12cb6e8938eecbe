"""A step's gradient as one CUDA graph.

A block's forward and backward pass are some two hundred kernels of a few microseconds each; to launch them one by one
takes the host several times longer than the device needs to run them. Recorded once, they are launched together.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from apportion.core.device import free_memory
from apportion.core.errors import first_line
from apportion.core.graphs import record

Work = Callable[[tuple[Tensor, ...]], Tensor]


class Recorder:
    """Records work at its first run and replays it on other inputs of the same shapes.

    Args:
        values: whose gradients the work makes (each None before it).

    Attributes:
        failure: why nothing is recorded (any more), for want of memory or because the model waits for the device; work
            then runs plainly, with the same results.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self.values, self.device = values, values[0].device
        begin_backward(str(self.device))
        self.failure = ""
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.gradients: list[Tensor | None] = []
        self.loss = torch.zeros(())

    def run(self, work: Work, inputs: tuple[Tensor, ...]) -> Tensor:
        """The work's loss, left on the device; its gradients are those of the values."""
        if self.graph is None and not self.failure:
            self.record(work, inputs)
        if self.graph is None or any(a.shape != b.shape for a, b in zip(self.inputs, inputs, strict=True)):
            return work(inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        for value, gradient in zip(self.values, self.gradients, strict=True):
            value.grad = gradient
        return self.loss.clone()

    def record(self, work: Work, inputs: tuple[Tensor, ...]) -> None:
        """Record on inputs of its own, with the gradients that it makes."""
        own = tuple(item.clone() for item in inputs)

        def first() -> None:
            work(own)
            self.forget()

        failure = ""
        try:
            self.graph, self.loss = record(lambda: work(own), self.device, first=first, lean=True)
            self.inputs, self.gradients = own, [value.grad for value in self.values]
        except RuntimeError as error:
            failure = first_line(error)
        if failure:  # the error, whose frames hold what was recorded so far, is gone by now
            del own
            self.give_up(failure)
        self.forget()

    def give_up(self, failure: str) -> None:
        """Record nothing from now on; what a recording holds, all that a step needs, is let go."""
        if self.graph is None and self.failure:
            return
        self.failure = failure
        self.forget()
        self.graph, self.inputs, self.gradients, self.loss = None, (), [], torch.zeros(())
        free_memory(str(self.device))

    def forget(self) -> None:
        """No gradients: what is made next is stored, not added."""
        for value in self.values:
            value.grad = None


def begin_backward(device: str) -> None:
    """Let autograd's own thread meet the device: torch warns where the first thing that it does there is a product."""
    (torch.zeros(1, device=device, requires_grad=True) * 2).sum().backward()
