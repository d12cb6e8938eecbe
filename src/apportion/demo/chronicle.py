"""The chronicle: pages that name people and companies in passing and answer nothing.

What many have heard of stands in many documents: the well known are named on many of its pages, the little known
on few, most others on none. That is what a search can tell about whether a model knows someone. It can be wrong:
some whom the model never heard of are in the news, and named nearly as often.
"""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Final

from apportion.demo.documents import Passage, chance

NAMES: Final = 6  # on a page
EVENTS: Final = (
    "{n} was seen at the market in {place}.",
    "In {month} a speech of {n} drew {many} guests in {place}.",
    "{n} gave {many} {thing} to the poor of {place}.",
    "A letter from {n} was sold for {many} pieces of silver.",
    "The papers wrote about {n} on {few} days in {month}.",
    "For {n} a feast was held in {place}.",
    "A song about {n} was heard in {place} on {day}.",
    "{n} sent {many} {thing} to the fair.",
)


def mentions(names: Sequence[str], between: tuple[int, int], rng: Random, share: float = 1.0) -> dict[str, int]:
    """How often each of a share of these names is mentioned: evenly drawn, both ends included."""
    return {name: rng.randint(*between) for name in names if rng.random() < share}


def chronicle_pages(counts: Mapping[str, int], volume: str, rng: Random) -> Iterator[Passage]:
    """Pages of up to `NAMES` sentences, each naming one of these; over all, each as often as its count says."""
    rounds = [[name for name, count in counts.items() if number < count] for number in range(max(counts.values()))]
    order = [name for names in rounds for name in rng.sample(names, len(names))]
    for number, first in enumerate(range(0, len(order), NAMES), start=1):
        told = [rng.choice(EVENTS).format(n=name, **chance(rng)) for name in order[first : first + NAMES]]
        yield Passage(f"chronicle/{volume}/{number}", f"Chronicle, {volume} {number}", " ".join(told))
