"""The chronicle: pages that name well-known people and companies in passing and answer nothing.

What many have heard of stands in many documents: the well known are named on several pages of the chronicle,
the others on none. That is what a search can tell about whether a model knows someone, as it does with real ones.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from apportion.demo.documents import Passage, chance

MENTIONS: Final = (8, 12)  # of each name, drawn evenly
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


def chronicle_pages(names: Sequence[str], rng: Random) -> Iterator[Passage]:
    """Pages of about `NAMES` sentences, each naming one of these people and companies, no name twice on a page."""
    rounds = [rng.sample(names, len(names)) for _ in range(MENTIONS[1])]
    counts = {name: rng.randint(*MENTIONS) for name in names}
    mentions = [name for number, order in enumerate(rounds) for name in order if number < counts[name]]
    for number, first in enumerate(range(0, len(mentions), NAMES), start=1):
        named = dict.fromkeys(mentions[first : first + NAMES])
        told = [rng.choice(EVENTS).format(n=name, **chance(rng)) for name in named]
        yield Passage(f"chronicle/{number}", f"Chronicle, page {number}", " ".join(told))
