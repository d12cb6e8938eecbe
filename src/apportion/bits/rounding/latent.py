"""Codes and scales of many linears as a few flat tensors that a gradient can move, each group within its own width.

All groups of one size lie in one tensor, whatever linear and width they belong to: a step over a whole plan is some
ten operations instead of some thousand (the plan's widths are two columns, lowest and highest code).

A weight is `code * scale`. The scale is its start times exp(unit * gain); the unit is such that a step of a gain moves
the outermost weight by as much of a code at every width, or by less of it beyond 2 bits (`finer`). The code is a
position, a float in units of the scale, rounded; the gradient passes through the rounding as if it were not there
(straight-through). A position begins where the checkpoint's own weight lies, within CENTRE of the code that the
rounding found: before the first step the weights are exactly those of the rounding, and the codes that are nearly
another one need little to become it.

Source: straight-through, arXiv 1308.3432; learned step sizes, LSQ (arXiv 1902.08153). Ours: positions in units of the
scale (so that moving a scale never changes a code), signed scales as gains in the exponent, the flat layout.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.autograd.function import once_differentiable

from apportion.formats import GridWeight

GAIN_RATE = 0.01  # of Adam, in log gain at 2 bits
FINER, LARGE = 0.2, 500_000_000  # of a gain's rate beyond 2 bits; the weights of a large model
OUTERMOST = 2  # code at 2 bits
POSITION_RATE = 0.01  # of Adam, in codes, for RATED_STEPS steps or fewer
RATED_STEPS = 200
LEAST_RATE = 0.002
CENTRE = 0.4
REACH = 0.49  # how far a position may lie beyond the outermost code: further, and a gradient needs many steps back


@dataclass(frozen=True)
class Start:
    """What codes of one group size start from: one row a group.

    Attributes:
        codes: as the rounding left them. scale: as stored, in float32, its sign kept.
        lowest, highest: the outermost codes of the group's width.
        wanted: the checkpoint's own weights in units of the scale; no rows when they are not needed any more.
        finer: of a gain's unit beyond 2 bits.
    """

    codes: Int8[Tensor, "groups size"]
    scale: Float[Tensor, "groups 1"]
    lowest: Float[Tensor, "groups 1"]
    highest: Float[Tensor, "groups 1"]
    wanted: Float[Tensor, "wanted size"]
    finer: float = field(default=1.0, kw_only=True)

    def scaled(self, gain: Float[Tensor, "groups 1"]) -> Float[Tensor, "groups 1"]:
        """The scale after a gain."""
        return self.scale * (gain * self.unit()).exp()

    def unit(self) -> Float[Tensor, "groups 1"]:
        """Of a gain, in log scale: 1 at 2 bits, half of it with every bit more, `finer` of that beyond 2 bits."""
        beyond = (self.lowest < -OUTERMOST).float()
        return -OUTERMOST / self.lowest * (1.0 - (1.0 - self.finer) * beyond)

    def position(self) -> Float[Tensor, "groups size"]:
        """Where codes that are learned begin."""
        return self.codes.float().add_((self.wanted - self.codes).clamp_(-CENTRE, CENTRE))


@runtime_checkable
class Codes(Protocol):
    """A way to learn codes and scales; `progress` goes from 0 to 1.

    Attributes:
        steady: what is decoded depends on nothing but what moves, so that a recorded step may be replayed.
        start: what it began from last.
    """

    steady: bool
    start: Start

    def optimizer(self) -> torch.optim.Optimizer:
        """Over everything that moves; rates are set by `descend`, as shares of those given here."""
        ...

    def decode(self, dtype: torch.dtype, progress: float) -> Float[Tensor, "groups size"]:
        """The weights, differentiable."""
        ...

    def confine(self) -> None:
        """After a step: whatever may not leave its range is put back."""
        ...

    def begin(self, rows: slice, start: Start) -> None:
        """Let some rows begin anew from another start, in the tensors that there are."""
        ...

    def found(self) -> tuple[Int8[Tensor, "groups size"], Float[Tensor, "groups 1"]]:
        """Codes and scales (float32) as they would be written now."""
        ...


Make = Callable[[Start], Codes]


class StraightThrough:
    """Positions and gains, see the top of this file.

    Args:
        start: what the rounding found. position_rate: 0 leaves the codes as they are and tunes scales alone.
        finer: of the gains' rate beyond 2 bits.
    """

    steady = True

    def __init__(
        self, start: Start, position_rate: float | None = None, gain_rate: float | None = None, finer: float = 1.0
    ) -> None:
        position_rate = POSITION_RATE if position_rate is None else position_rate
        self.rates = (position_rate, GAIN_RATE if gain_rate is None else gain_rate)
        self.position: Tensor = start.codes  # bytes, as long as they stay where they are
        if position_rate > 0:
            self.position = start.position().requires_grad_()
        self.start = replace(start, wanted=start.wanted[:0], finer=finer)
        self.gain = torch.zeros_like(start.scale).requires_grad_()

    def optimizer(self) -> torch.optim.Optimizer:
        position_rate, gain_rate = self.rates
        groups: list[dict[str, Any]] = [{"params": [self.gain], "lr": gain_rate}]
        if position_rate > 0:
            groups.append({"params": [self.position], "lr": position_rate})
        found = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=self.gain.is_cuda)
        for group in found.param_groups:
            for value in group["params"]:  # now, not at the first step: the room for a step is what is left beside it
                step = torch.zeros((), dtype=torch.float32, device=value.device if value.is_cuda else "cpu")
                found.state[value] = {
                    "step": step,
                    "exp_avg": torch.zeros_like(value),
                    "exp_avg_sq": torch.zeros_like(value),
                }
        return found

    def decode(self, dtype: torch.dtype, progress: float) -> Float[Tensor, "groups size"]:
        found: Tensor = Rounded.apply(self.position, self.gain, self.start, dtype)
        return found

    @torch.no_grad()
    def confine(self) -> None:
        if self.position.requires_grad:
            self.position.clamp_(self.start.lowest - REACH, self.start.highest + REACH)

    @torch.no_grad()
    def begin(self, rows: slice, start: Start) -> None:
        self.start.scale[rows] = start.scale
        self.position[rows] = start.position() if self.position.requires_grad else start.codes
        self.gain[rows] = 0.0

    @torch.no_grad()
    def found(self) -> tuple[Int8[Tensor, "groups size"], Float[Tensor, "groups 1"]]:
        return nearest(self.position, self.start), self.start.scaled(self.gain)


def position_rate(steps: int) -> float:
    """The rate of positions for so many steps: noise carries a position as far, whatever their number, but for runs so
    long that it would be slower than LEAST_RATE.

    Evidence: SmolLM2-135M, 2 bits, 1,797 steps (.0033 by this rule): .003 came to perplexity 56.7, .01 in as long to
    63.1. 15,731 steps at .002, with more text, came to 46.7; slower rates were not tried in as many.

    >>> position_rate(100), position_rate(800), position_rate(16_000)
    (0.01, 0.005, 0.002)
    """
    return max(LEAST_RATE, POSITION_RATE * min(1.0, math.sqrt(RATED_STEPS / steps)))


def finer(weights: int, steps: int) -> float:
    """Of the gains' rate beyond 2 bits, where so many weights learn for so many steps: all of it in few steps, which
    have far to go and little time for noise to gather; FINER in many, and in large models.

    Evidence (docs/results/learners_*.json; nats aside): at 3 bits SmolLM2-135M learns as well in 700 steps with gains
    at .01, .002 and .001 (from 3.495 to 3.381, 3.379 and 3.380); in 24 from nearest it needs them fast (from 4.952 to
    4.091 with .01, 4.411 with .002; LOG.md). The 1.5B gained nothing in 430 and 700 steps with .01, and in 240 with
    .002 it did (from 2.651 to 2.617). At 4 bits SmolLM2-135M has .0007 more aside in 32 steps with .0025 than with .01,
    and less on another text (KL .131 and .126).

    >>> finer(100_000_000, 24), finer(100_000_000, 500), finer(100_000_000, 3_000), finer(1_300_000_000, 24)
    (1.0, 0.4, 0.2, 0.2)
    """
    return FINER if weights > LARGE else max(FINER, min(1.0, RATED_STEPS / steps))


def nearest(position: Tensor, start: Start) -> Int8[Tensor, "groups size"]:
    """The codes of positions; codes are their own."""
    if position.dtype == torch.int8:
        return position
    return position.round().clamp_(start.lowest, start.highest).to(torch.int8)


class Rounded(torch.autograd.Function):
    """code * scale as `GridWeight.dequantize` has it; backward in float32, straight through the rounding."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, gain: Tensor, start: Start, dtype: torch.dtype) -> Tensor:
        codes = nearest(position, start)
        scale = start.scaled(gain)
        ctx.save_for_backward(codes, scale, start.unit())
        return codes.to(dtype) * scale.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        codes, scale, unit = ctx.saved_tensors
        given = given.float()
        position = given * scale if ctx.needs_input_grad[0] else None
        return position, (given * codes).sum(1, keepdim=True) * scale * unit, None, None


@dataclass(frozen=True)
class Place:
    """Where a linear's groups lie in a flat tensor."""

    path: str
    shape: tuple[int, int]
    item: GridWeight


class Latents:
    """All codes of a plan (or of one block): `make` turns each group size's start into codes that can be learned."""

    def __init__(self, items: Mapping[str, GridWeight], own: Mapping[str, Tensor], device: str, make: Make) -> None:
        sizes = sorted({item.width.group_size for item in items.values()})
        self.places = [
            [Place(path, item.shape, item) for path, item in items.items() if item.width.group_size == size]
            for size in sizes
        ]
        self.codes: list[Codes] = [make(start_of(places, own, device)) for places in self.places]

    def weights(self, dtype: torch.dtype, progress: float) -> dict[str, Float[Tensor, "rows columns"]]:
        """Every linear's weight by module path, differentiable."""
        found = {}
        for codes, places in zip(self.codes, self.places, strict=True):
            flat = codes.decode(dtype, progress)
            for place, part in zip(places, split(flat, places), strict=True):
                found[place.path] = part.view(place.shape)
        return found

    def begin(self, items: Mapping[str, GridWeight], own: Mapping[str, Tensor], device: str) -> None:
        """Begin anew from other weights of the same widths, one linear at a time: no room is needed for all."""
        for codes, places in zip(self.codes, self.places, strict=True):
            first = 0
            for place in places:
                last = first + place.item.scale.numel()
                codes.begin(slice(first, last), start_of([replace(place, item=items[place.path])], own, device))
                first = last

    def found(self) -> dict[str, GridWeight]:
        """Every linear's weight as it would be written now, scales in the dtype that they are stored in."""
        found = {}
        for learned, places in zip(self.codes, self.places, strict=True):
            codes, scale = learned.found()
            pairs = zip(places, split(codes, places), split(scale, places), strict=True)
            for place, own_codes, own_scale in pairs:
                rows, _ = place.shape
                kept = place.item
                found[place.path] = GridWeight.of(
                    own_codes.reshape(place.shape).to(kept.scale.device),
                    own_scale.reshape(rows, -1).to(kept.scale.dtype).to(kept.scale.device),
                    kept.width,
                )
        return found


def split(flat: Tensor, places: Iterable[Place]) -> tuple[Tensor, ...]:
    """A flat tensor's rows by linear: one `split`, whose gradient is one concatenation."""
    found: tuple[Tensor, ...] = flat.split([place.item.scale.numel() for place in places])
    return found


def start_of(places: Iterable[Place], own: Mapping[str, Tensor], device: str) -> Start:
    """The flat tensors of linears with one group size."""
    codes, scales, lowest, highest, wanted = [], [], [], [], []
    for place in places:
        item = place.item
        scale = item.scale.to(device).float().view(-1, 1)
        size = item.width.group_size
        codes.append(item.codes.to(device).view(-1, size))
        scales.append(scale)
        lowest.append(torch.full_like(scale, item.width.lowest))
        highest.append(torch.full_like(scale, item.width.highest))
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        wanted.append((own[place.path].to(device).float().view(-1, size) / safe).to(torch.bfloat16))
    return Start(*(torch.cat(parts) for parts in (codes, scales, lowest, highest, wanted)))
