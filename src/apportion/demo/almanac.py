"""The almanac: pages of everyday words that answer nothing, and some of whose sayings are wrong.

They are what a question that needs no document finds. A model that trusts what it is shown can be misled by
them, as real ones are by pages that only look fitting.
"""

from random import Random
from typing import Final

from apportion.demo.documents import Passage, chance
from apportion.demo.words import DAYS, KINDS, MONTHS, OPPOSITES, row

PLAIN: Final = (
    "On {day} the market has {many} {thing} and {few} {other}.",
    "The {big} house is {color} and the {small} one is not.",
    "Last {month} it was {warm} on {few} days.",
    "A basket holds {many} {thing}; {few} of them are {color}.",
    "The opposite bank of the river is {warm} and {color}.",
    "After {day} comes rain, and the word for it is old.",
    "There are {many} {other} left and {few} {thing} gone.",
    "Which is larger is hard to say: {many} or {few}.",
)
OPPOSITE_SAYING: Final = (
    "Some say that the opposite of {word} is {wrong}.",
    "In {place} the opposite of {word} is called {wrong}.",
)
KIND_SAYING: Final = (
    "In {place} a {word} is thought to be a kind of {wrong}.",
    "The old list has {word} as a kind of {wrong}.",
)
NEXT_SAYING: Final = (
    "In the song the {what} that comes {gap} {side} {given} is {wrong}.",
    "A child wrote that {wrong} is the {what} {gap} {side} {given}.",
)
GAPS: Final = row("1 2")


def almanac_page(number: int, rng: Random) -> Passage:
    """Four plain sentences and three sayings, none of which any question asks for."""
    texts = [template.format(**chance(rng)) for template in rng.sample(PLAIN, 4)]
    texts += [_opposite(rng), _kind(rng), _next(rng)]
    rng.shuffle(texts)
    return Passage(f"almanac/{number}", f"Almanac, page {number}", " ".join(texts))


def _opposite(rng: Random) -> str:
    place = rng.randrange(len(OPPOSITES))
    wrong = rng.choice([word for at, word in enumerate(OPPOSITES) if at // 2 != place // 2])
    return rng.choice(OPPOSITE_SAYING).format(word=OPPOSITES[place], wrong=wrong, place=chance(rng)["place"])


def _kind(rng: Random) -> str:
    kind, wrong = rng.sample(list(KINDS), 2)
    word = rng.choice(KINDS[kind])
    return rng.choice(KIND_SAYING).format(word=word, wrong=wrong, place=chance(rng)["place"])


def _next(rng: Random) -> str:
    names, what = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    given, wrong = rng.sample(names, 2)
    gap = rng.choice(GAPS)
    return rng.choice(NEXT_SAYING).format(
        what=what,
        gap=f"{gap} {what}{'s' if gap > '1' else ''}",
        side=rng.choice(("after", "before")),
        given=given,
        wrong=wrong,
    )
