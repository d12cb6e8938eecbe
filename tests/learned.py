"""A text, weights to learn from, and whether two learned the same."""

import torch

from apportion.bits.rounding import round_plan
from apportion.bits.rounding.nearest import Nearest
from apportion.formats import grid_width

WINDOWS = torch.randint(2, 150, (96, 24), generator=torch.Generator().manual_seed(5))


def rounded_to(staged, bits: int):
    return round_plan(staged, Nearest(), dict.fromkeys(staged.originals, grid_width(bits, 32)))


def same_weights(first, second) -> bool:
    return all(
        torch.equal(item.codes, second[path].codes) and torch.equal(item.scale, second[path].scale)
        for path, item in first.items()
    )
