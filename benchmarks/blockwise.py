"""Codes learned one block at a time: the rounded block, given what the rounded model gives it, is to return what the
full-precision block returns on the full-precision stream.

It needs the memory of one block, whatever the model's size, and it is a start for learning end to end. The error of a
token is measured against its own size: some tokens (the first of a window) are a thousand times larger than others,
and a plain mean would be about them alone.

Source: AutoRound (arXiv 2309.05516) and EfficientQAT (arXiv 2407.11062) learn block by block; targets from the
full-precision stream and the relative error are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from apportion.bits.rounding.descent import LOSS_SCALE, Descent, Micro, batches
from apportion.bits.rounding.latent import Latents, Make
from apportion.bits.rounding.sequential import put
from apportion.core.progress import progress
from apportion.core.seeds import derived_seed
from apportion.formats import GridWeight
from apportion.models.staged import Call, Embedded, StagedModel

TINY = 1e-30


@dataclass(frozen=True)
class Streams:
    """One block's task: what it is given, and what it is to return.

    Attributes:
        given: hidden states of the rounded model before the block. wanted: full precision's after it.
    """

    given: Float[Tensor, "windows tokens hidden"]
    wanted: Float[Tensor, "windows tokens hidden"]


class Blockwise:
    """A walk over the blocks that leaves each one learned.

    Args:
        steps: for each block. batch: windows of a step. make: of the codes, see `latent.Codes`.
    """

    def __init__(self, staged: StagedModel, steps: int, batch: int, seed: int, make: Make) -> None:
        self.staged, self.steps, self.batch, self.seed, self.make = staged, steps, batch, seed, make
        self.micro = Micro(batch)

    def learn(self, start: Mapping[str, GridWeight], windows: Int[Tensor, "windows tokens"]) -> dict[str, GridWeight]:
        """Every linear's weight by module path. The checkpoint's own weights are in place before and after."""
        staged = self.staged
        staged.restore()
        embedded = staged.embed(windows)
        calls = Calls(staged, windows)
        full, rounded = embedded.hidden, embedded.hidden
        found: dict[str, GridWeight] = {}
        with progress("learning block by block", staged.layout.block_count, "blocks") as advance:
            for block in range(staged.layout.block_count):
                full = staged.run_block(block, full, embedded)
                paths = [staged.layout.path(block, name) for name in staged.layout.linears[block]]
                task = BlockTask(staged, block, Streams(rounded, full), embedded, calls)
                found |= self.learn_block(task, {path: start[path] for path in paths})
                rounded = task.forward(found)
                advance()
        return found

    def learn_block(self, task: "BlockTask", start: Mapping[str, GridWeight]) -> dict[str, GridWeight]:
        """One block's weights after its steps, or as they were where that is nearer over all windows."""
        staged = self.staged
        latents = Latents(start, staged.originals, staged.placement.device, self.make)
        count = len(task.streams.given)
        descent = Descent(latents, self.steps, staged.compute_dtype, self.micro)
        for batch in batches(count, min(self.batch, count), self.steps, derived_seed(self.seed, "block", task.block)):
            descent.step(task, batch)
        learned = latents.found()
        return learned if task.error(learned) < task.error(start) else dict(start)


class BlockTask:
    """A block's error and its gradient."""

    def __init__(self, staged: StagedModel, block: int, streams: Streams, embedded: Embedded, calls: "Calls") -> None:
        self.staged, self.block, self.streams, self.embedded, self.calls = staged, block, streams, embedded, calls
        self.prefix = f"{staged.layout.prefix}.{block}."

    def inputs(self, chosen: Int[Tensor, " part"]) -> tuple[Tensor, ...]:
        """What the block is given for these windows, and what it is to return."""
        chosen = chosen.to(self.streams.given.device)
        self.calls.of(len(chosen))
        return self.streams.given[chosen], self.streams.wanted[chosen]

    def gradient(self, weights: dict[str, Tensor], inputs: tuple[Tensor, ...], share: float) -> Tensor:
        """Of the relative error of the block's outputs."""
        given, wanted = inputs
        args, kwargs = self.calls.of(len(given))[self.block]
        put_in = {f"{path.removeprefix(self.prefix)}.weight": weight for path, weight in weights.items()}
        out = functional_call(self.staged.blocks[self.block], put_in, (given, *args), kwargs)
        out = out[0] if isinstance(out, tuple) else out
        loss = relative_error(out, wanted) * share
        (loss * LOSS_SCALE.get(self.staged.compute_dtype, 1.0)).backward()
        return loss.detach()

    def forward(self, items: Mapping[str, GridWeight]) -> Float[Tensor, "windows tokens hidden"]:
        """The block's outputs on all windows with these weights."""
        device, dtype = self.staged.placement.device, self.staged.compute_dtype
        names = self.staged.layout.linears[self.block]
        own = {name: self.staged.linear(self.block, name).weight.data for name in names}
        put(self.staged, self.block, {n: items[self.prefix + n].dequantize(dtype).to(device) for n in names})
        try:
            return self.staged.run_block(self.block, self.streams.given, self.embedded)
        finally:
            put(self.staged, self.block, own)

    def error(self, items: Mapping[str, GridWeight]) -> float:
        """Relative error over all windows."""
        pairs = zip(self.forward(items), self.streams.wanted, strict=True)
        return float(torch.stack([relative_error(out, wanted) for out, wanted in pairs]).mean())


class Calls:
    """What the blocks are called with besides hidden states, by number of windows."""

    def __init__(self, staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> None:
        self.staged, self.windows = staged, windows
        self.known: dict[int, tuple[Call, ...]] = {}

    def of(self, size: int) -> tuple[Call, ...]:
        """The calls of every block for so many windows."""
        if size not in self.known:
            self.known[size] = self.staged.begin(self.windows[:size])[1]
        return self.known[size]


def relative_error(out: Tensor, wanted: Tensor) -> Tensor:
    """Mean over tokens of the squared error as a share of the wanted state's square."""
    out, wanted = out.float(), wanted.float()
    return ((out - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(TINY)).mean()
