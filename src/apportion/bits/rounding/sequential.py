"""Walk a model's blocks in order with calibration text, so that each is rounded for what the ones before it became.

Two streams run side by side: the hidden states of the checkpoint's own weights, and those of the weights that
the visitor has put in place so far. From both come the second moments of every linear's inputs. Inside a block
the linears are visited in stages (those that are given the same input: q/k/v, then o, then gate/up, then down
in a Llama); a stage sees the earlier stages of its own block as they were rounded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from apportion.bits.rounding.moments import Moments
from apportion.core.device import free_memory, within_memory
from apportion.core.errors import OutOfMemoryError
from apportion.core.progress import progress
from apportion.models.embedded import Embedded
from apportion.models.staged import StagedModel
from apportion.models.structure import experts_of

IN_SEQUENCE = "rounding in sequence"  # what its bar says
Visit = Callable[[str, Moments], Float[Tensor, "rows columns"] | None]
Stage = tuple[str, ...]


@runtime_checkable
class Pieces(Protocol):
    """Finished blocks of an earlier run."""

    def load(self, block: int) -> Mapping[str, Float[Tensor, "rows columns"]] | None:
        """The weights that were left in place in a block, by module path; None where it was not finished."""
        ...

    def save(self, block: int) -> None:
        """A block was just finished."""
        ...


class Reached(Exception):  # noqa: N818 - not an error: a hook leaves the block when it has seen what it came for
    """All that is wanted of a block has been seen."""


def walk(
    staged: StagedModel,
    windows: Int[Tensor, "windows tokens"],
    visit: Visit,
    *,
    full_stream: bool = True,
    staged_blocks: bool = True,
    pieces: Pieces | None = None,
) -> None:
    """Visit every linear in the order of the forward pass.

    Args:
        windows: calibration text.
        visit: given a linear's path and the moments of its inputs, returns the weight to leave in place for
            what comes after, or None for the checkpoint's own.
        full_stream: keep the stream of the checkpoint's own weights too, so that moments have a `cross`.
        staged_blocks: see the earlier stages of the same block as they were rounded; otherwise all linears of
            a block are visited on one pass over it.
        pieces: blocks that need no visit, because an earlier run finished them.

    The checkpoint's own weights are in place before and after.

    Where memory runs out it begins again with fewer windows at once, at the first block that `pieces` does not have.

    Cost: with S stages in a block, 2 S + 2 (or 4) forwards of each block, half of each on average.
    """
    streams = {"full_stream": full_stream, "staged_blocks": staged_blocks}
    staged.within_memory(windows, lambda: walk_once(staged, windows, visit, pieces, **streams))


@torch.inference_mode()
def walk_once(
    staged: StagedModel,
    windows: Int[Tensor, "windows tokens"],
    visit: Visit,
    pieces: Pieces | None,
    *,
    full_stream: bool,
    staged_blocks: bool,
) -> None:
    """`walk`, with as many windows at once as the model runs now."""
    staged.restore()
    embedded = staged.embed(windows)
    rounded, full = embedded.hidden, embedded.hidden if full_stream else None
    with progress(IN_SEQUENCE, len(staged.originals), "linears") as advance:
        for block in range(staged.layout.block_count):
            own = {name: staged.linear(block, name).weight.data for name in staged.layout.linears[block]}
            left = loaded(staged, block, pieces)
            if left is None:
                left = visit_block(staged, block, visit, (rounded, full), own, embedded, staged_blocks)
                if pieces is not None:
                    pieces.save(block)
            advance(len(own))
            put(staged, block, own)
            full = staged.run_block(block, full, embedded) if full is not None else None
            put(staged, block, left)
            rounded = staged.run_block(block, rounded, embedded)
            put(staged, block, own)


def visit_block(
    staged: StagedModel,
    block: int,
    visit: Visit,
    streams: tuple[Tensor, Tensor | None],
    own: Mapping[str, Tensor],
    embedded: Embedded,
    staged_blocks: bool,
) -> dict[str, Tensor]:
    """What the visitor leaves in place of a block's linears, by name in the block."""
    rounded, full = streams
    left = dict(own)
    stages = stages_of(staged, block, rounded, embedded)
    for group in [[stage] for stage in stages] if staged_blocks else [stages]:
        found = moments(staged, block, group, (rounded, left), full, own, embedded)
        for stage in group:
            for name in stage:
                weight = visited(staged, visit, staged.layout.path(block, name), found[stage])
                left[name] = own[name] if weight is None else weight.to(own[name])
    put(staged, block, own)
    return left


def visited(staged: StagedModel, visit: Visit, path: str, found: Moments) -> Tensor | None:
    """A visit, tried again once where memory runs out in it: fewer windows at once would not help.

    Raises:
        OutOfMemoryError: naming the linear.
    """
    again = False

    def once_more() -> None:
        nonlocal again
        if again:
            raise OutOfMemoryError(
                f"memory of {staged.placement.device} ran out while {path} was rounded",
                "end other programs on the device, or use --device cpu into another --out",
            )
        again = True
        free_memory(staged.placement.device)

    return within_memory(lambda: visit(path, found), once_more)


def loaded(staged: StagedModel, block: int, pieces: Pieces | None) -> dict[str, Tensor] | None:
    """What an earlier run left in place of a block's linears, by name in the block; None where it did not get there."""
    found = None if pieces is None else pieces.load(block)
    if found is None:
        return None
    names = {name: staged.layout.path(block, name) for name in staged.layout.linears[block]}
    return {name: found[path].to(staged.linear(block, name).weight.data) for name, path in names.items()}


def put(staged: StagedModel, block: int, weights: Mapping[str, Tensor]) -> None:
    """Give a block's linears these weights."""
    for name, weight in weights.items():
        staged.linear(block, name).weight.data = weight


def stages_of(staged: StagedModel, block: int, hidden: Tensor, embedded: Embedded) -> list[Stage]:
    """Linears of a block that are given the same tensor, in the order in which they are called."""
    groups: dict[int, list[str]] = {}
    with inputs_of(staged, block, staged.layout.linears[block]) as seen:
        staged.run_block(block, hidden[: embedded.batch], embedded)
    for name, tensor in seen.items():
        groups.setdefault(tensor.data_ptr(), []).append(name)
    unseen = [(name,) for name in staged.layout.linears[block] if name not in seen]  # experts that no token chose
    return [*(tuple(group) for group in groups.values()), *unseen]


@contextmanager
def inputs_of(
    staged: StagedModel, block: int, names: Sequence[str], *, leave: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Keep the inputs of the latest call of some linears; `leave` ends the forward pass at the last of them."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0]
            if leave and len(seen) == len(names):
                raise Reached

        return hook

    handles = [staged.linear(block, name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def stage_inputs(
    staged: StagedModel, block: int, names: Sequence[str], hidden: Tensor, embedded: Embedded
) -> list[Float[Tensor, "tokens columns"] | None]:
    """What some linears are given on one batch; None for those that are not called: experts that no token chose."""
    with inputs_of(staged, block, names, leave=True) as seen, suppress(Reached):
        staged.run_block(block, hidden, embedded)
    return [seen[name].flatten(0, -2) if name in seen else None for name in names]


def products(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens columns"]
) -> Float[Tensor, "rows columns"]:
    """Sum over tokens of left' right, in float32.

    Of bfloat16 and float16 states on a GPU the matrix units make every single product exactly and add in float32: the
    same sum as of states cast to float32, some ten times as fast.
    """
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left.T, right, out_dtype=torch.float32)
    return left.float().T @ right.float()


def moments(
    staged: StagedModel,
    block: int,
    stages: Sequence[Stage],
    stream: tuple[Tensor, Mapping[str, Tensor]],
    full: Tensor | None,
    own: Mapping[str, Tensor],
    embedded: Embedded,
) -> dict[Stage, Moments]:
    """Second moments of the inputs of some stages, accumulated batch by batch.

    The two streams may send a token to different experts, so that experts have no `cross`. An expert that no token
    chose is told that all its inputs are alike: it is rounded as without a text, and listed in `staged.untaught`.
    """
    first = [stage[0] for stage in stages]
    hidden, left = stream
    hessians: dict[str, Tensor] = {}
    crosses: dict[str, Tensor] = {}
    tokens = dict.fromkeys(first, 0)
    parts = hidden.split(embedded.batch)
    fulls: Sequence[Tensor | None] = full.split(embedded.batch) if full is not None else [None] * len(parts)
    for part, full_part in zip(parts, fulls, strict=True):
        put(staged, block, left)
        inputs = dict(zip(first, stage_inputs(staged, block, first, part, embedded), strict=True))
        for name, x in inputs.items():
            if x is not None:
                add(hessians, name, products(x, x))
                tokens[name] += len(x)
        if full_part is not None:
            put(staged, block, own)
            for name, f in zip(first, stage_inputs(staged, block, first, full_part, embedded), strict=True):
                x = inputs[name]
                if f is not None and x is not None and not experts_of(name):
                    add(crosses, name, products(f, x))
    return {stage: moments_of(staged, block, stage, hessians, crosses, tokens[stage[0]]) for stage in stages}


def moments_of(
    staged: StagedModel,
    block: int,
    stage: Stage,
    hessians: Mapping[str, Tensor],
    crosses: Mapping[str, Tensor],
    tokens: int,
) -> Moments:
    """Means of what was summed for a stage; the identity where no token came."""
    name = stage[0]
    if not tokens:
        staged.untaught.update(staged.layout.path(block, linear) for linear in stage)
        weight = staged.linear(block, name).weight
        return Moments(torch.eye(weight.shape[1], device=weight.device), None, 0)
    return Moments(hessians[name] / tokens, crosses[name] / tokens if name in crosses else None, tokens)


def add(totals: dict[str, Tensor], name: str, term: Tensor) -> None:
    """Add to the sum of a name; the first term is the sum itself."""
    if name in totals:
        totals[name] += term
    else:
        totals[name] = term
