"""Steps of gradient descent on latent codes: rates that warm up and fall, batches that fit, smaller ones where not."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.rounding.latent import Latents
from apportion.bits.rounding.recorded import Recorder
from apportion.core.device import free_memory, within_memory
from apportion.core.errors import OutOfMemoryError
from apportion.formats import GridWeight

WARM_STEPS = 10
SLOWER = 0.2  # of the rates, where all that was learned is worth nothing
LOSS_SCALE = {torch.float16: 1024.0}  # gradients of single weights underflow in float16; Adam divides it out
Inputs = tuple[Tensor, ...]


@runtime_checkable
class Task(Protocol):
    """What is descended, part of a batch by part."""

    def inputs(self, chosen: Int[Tensor, " part"]) -> Inputs:
        """All that a part's loss depends on besides the weights; of one shape for parts of one size."""
        ...

    def gradient(self, weights: dict[str, Tensor], inputs: Inputs, share: float) -> Tensor:
        """Send the gradient of a part's loss times its share of the batch to the weights (leaves that want one).

        Returns that loss times the share, and reads nothing back to the host where it is to be recorded.
        """
        ...


@dataclass
class Micro:
    """Windows of one forward and backward pass, halved when memory runs out; sums over a batch stay the same.

    Attributes:
        windows: now; fewer than at first is said in the result.
    """

    windows: int

    def halve(self, device: str) -> None:
        """Half as many from now on."""
        self.windows = max(1, self.windows // 2)
        free_memory(device)


class Descent:
    """A number of steps; what it holds can be saved between two steps and loaded in another process.

    Args:
        latents: what moves. steps: of which each is one `step`. dtype: that weights are decoded in.
        micro: windows that fit.
    """

    def __init__(self, latents: Latents, steps: int, dtype: torch.dtype, micro: Micro) -> None:
        self.latents, self.steps, self.dtype, self.micro = latents, steps, dtype, micro
        self.optimizers = [codes.optimizer() for codes in latents.codes]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.done = self.warmed = 0  # steps over; those before the rates last began to warm up
        moving = [value for _, value, _ in self.values() if value.requires_grad]
        steady = all(codes.steady for codes in latents.codes)
        self.recorder = Recorder(moving) if steady and torch.device(self.device).type == "cuda" else None

    def step(self, task: Task, batch: Int[Tensor, " size"]) -> Float[Tensor, ""]:
        """One step; the loss before it, left on the device (to read it is to wait for it).

        Raises:
            OutOfMemoryError: one window does not fit.
        """
        share = min(1.0, (self.done - self.warmed + 1) / WARM_STEPS) * (1 - self.progress)
        for optimizer, given in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, given, strict=True):
                group["lr"] = rate * share
            optimizer.zero_grad()
        loss = self.loss(task, batch)
        for optimizer, codes in zip(self.optimizers, self.latents.codes, strict=True):
            optimizer.step()
            codes.confine()
        self.done += 1
        return loss

    def loss(self, task: Task, batch: Int[Tensor, " size"]) -> Float[Tensor, ""]:
        """The loss of a batch, its gradient where the optimizers look for it; in smaller parts if memory runs out."""
        return within_memory(lambda: self.parts(task, batch), self.shrink)

    def shrink(self) -> None:
        """Half as many windows at once from now on, and nothing recorded.

        Raises:
            OutOfMemoryError: it is one window already.
        """
        if self.micro.windows == 1:
            raise OutOfMemoryError(
                f"memory of {self.device} ran out while learning from one window at a time",
                "use smaller --window-tokens, --tune-scales instead of --tune, or a larger device",
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.recorder is not None:
            self.recorder.give_up("memory ran out")
        self.micro.halve(self.device)

    def go_back(self, items: Mapping[str, GridWeight], own: Mapping[str, Tensor]) -> None:
        """Begin again from these weights, more slowly."""
        within_memory(lambda: self.latents.begin(items, own, self.device), self.make_room)
        for _, value, optimizer in self.values():
            for item in optimizer.state[value].values():
                item.zero_()
        self.slow_down(self.done)

    def found(self) -> dict[str, GridWeight]:
        """Every linear's weight as it would be written now.

        Raises:
            OutOfMemoryError: there is no room for it beside what is learned.
        """
        return within_memory(self.latents.found, self.make_room)

    def make_room(self) -> None:
        """Let go of what is recorded.

        Raises:
            OutOfMemoryError: nothing is.
        """
        if self.recorder is None or self.recorder.failure:
            raise OutOfMemoryError(
                f"memory of {self.device} ran out while what was learned was looked at",
                "use --tune-scales instead of --tune, or a larger device",
            )
        self.recorder.give_up("memory ran out")

    def slow_down(self, since: int) -> None:
        """SLOWER of all rates from a step on, which warm up anew there."""
        self.rates = [[SLOWER * rate for rate in group] for group in self.rates]
        self.warmed = since

    def parts(self, task: Task, batch: Int[Tensor, " size"]) -> Float[Tensor, ""]:
        """The loss of a batch, part by part; one that is no parts is recorded where it can be."""
        pieces = batch.split(self.micro.windows)
        if len(pieces) == 1 and self.recorder is not None:
            return self.recorder.run(lambda inputs: self.sent(task, [(inputs, 1.0)]), task.inputs(batch))
        return self.sent(task, ((task.inputs(piece), len(piece) / len(batch)) for piece in pieces))

    def sent(self, task: Task, pieces: Iterable[tuple[Inputs, float]]) -> Float[Tensor, ""]:
        """The loss of a batch, its gradient sent to all that moves."""
        with torch.enable_grad():
            decoded = self.latents.weights(self.dtype, self.progress)
            leaves = {path: weight.detach().requires_grad_() for path, weight in decoded.items()}
            losses = [task.gradient(leaves, inputs, share) for inputs, share in pieces]
            used = [path for path, leaf in leaves.items() if leaf.grad is not None]
            torch.autograd.backward([decoded[path] for path in used], [leaves[path].grad for path in used])
        return torch.stack(losses).sum()

    @property
    def settled(self) -> bool:
        """Whether it is long enough at its rates for what it found to tell of them."""
        return self.done - self.warmed >= 2 * WARM_STEPS

    @property
    def execution(self) -> str:
        """How steps are run, see `Tuned`."""
        if self.recorder is None:
            return "plain"
        return f"plain: {self.recorder.failure}" if self.recorder.failure else "recorded"

    @property
    def progress(self) -> float:
        """What is over of it, from 0 to 1."""
        return self.done / self.steps

    @property
    def device(self) -> str:
        """Where it moves."""
        return str(self.optimizers[0].param_groups[0]["params"][0].device)

    def values(self) -> Iterator[tuple[str, Tensor, torch.optim.Optimizer]]:
        """Everything that moves, by name."""
        for place, optimizer in enumerate(self.optimizers):
            for number, group in enumerate(optimizer.param_groups):
                for value in group["params"]:
                    yield f"{place}.{number}", value, optimizer

    def tensors(self) -> dict[str, Tensor]:
        """All that later steps depend on: scales too, from which gains count, and which going back replaces."""
        found = {f"{place}.scale": codes.start.scale for place, codes in enumerate(self.latents.codes)}
        for name, value, optimizer in self.values():
            found[f"{name}.value"] = value.detach()
            for key, item in optimizer.state[value].items():
                found[f"{name}.{key}"] = item
        return found

    def load(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Go on after so many steps, with what `tensors` gave there; after the last step nothing is needed."""
        for place, codes in enumerate(self.latents.codes if tensors else ()):
            codes.start.scale.copy_(tensors[f"{place}.scale"])
        for name, value, optimizer in self.values() if tensors else ():
            own = {key.removeprefix(f"{name}."): item for key, item in tensors.items() if key.startswith(f"{name}.")}
            value.data.copy_(own.pop("value"))
            steps = own.pop("step")
            optimizer.state[value] = {"step": steps.to(value.device if value.is_cuda else "cpu")}
            optimizer.state[value] |= {key: item.to(value.device) for key, item in own.items()}
        self.done = done


def batches(windows: int, size: int, steps: int, seed: int) -> Iterator[Int[Tensor, " size"]]:
    """Random windows, all of them once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.zeros(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(windows, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
