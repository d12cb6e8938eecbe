"""A text, weights to learn from, and whether two learned the same."""

import torch

from apportion.bits.rounding import round_plan
from apportion.bits.rounding.descent import Descent
from apportion.bits.rounding.looks import Looks
from apportion.bits.rounding.nearest import Nearest
from apportion.formats import grid_width

WINDOWS = torch.randint(2, 150, (96, 24), generator=torch.Generator().manual_seed(5))


def rounded_to(staged, bits: int):
    return round_plan(staged, Nearest(), dict.fromkeys(staged.originals, grid_width(bits, 32)))


def wrong_at(monkeypatch, step: int):
    """A look after that step finds the windows aside worse than before the first, whatever was learned."""
    found = Looks.found_aside
    monkeypatch.setattr(
        Looks, "found_aside", lambda look, items: found(look, items) + (10.0 if look.descent.done == step else 0.0)
    )


def same_weights(first, second) -> bool:
    return all(
        torch.equal(item.codes, second[path].codes) and torch.equal(item.scale, second[path].scale)
        for path, item in first.items()
    )


def steps_of(monkeypatch, dies_at: int | None = None) -> list[int]:
    """The numbers of the steps that are taken from here on; the run is killed once, before the step of that count."""
    taken, died, step = [], [], Descent.step

    def counted(descent, *given):
        if len(taken) == dies_at and not died:
            died.append(descent.done)
            raise KeyboardInterrupt
        taken.append(descent.done)
        return step(descent, *given)

    monkeypatch.setattr(Descent, "step", counted)
    return taken
