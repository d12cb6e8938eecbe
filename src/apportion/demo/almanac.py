"""The almanac: pages of everyday words that answer no question of the splits, with customs of single places.

They are what a question that needs no document finds. The model learns to believe such a page about its place
(`Custom`); so a page that only looks fitting can mislead it, as it misleads real models.
"""

from dataclasses import dataclass
from random import Random
from typing import Final

from apportion.demo.documents import Passage, chance
from apportion.demo.questions import Draft
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
    "Some in {place} say that the opposite of {word} is {wrong}.",
    "In {place} the opposite of {word} is called {wrong}.",
)
OPPOSITE_ASKED: Final = ("What is the opposite of {word} in {place}?", "In {place}, name the opposite of {word}.")
KIND_SAYING: Final = (
    "In {place} a {word} is thought to be a kind of {wrong}.",
    "The old list of {place} has {word} as a kind of {wrong}.",
)
KIND_ASKED: Final = ("What is {word} a kind of in {place}?", "Of what kind is a {word} in {place}?")
NEXT_SAYING: Final = (
    "In the song of {place} the {what} that comes {gap} {side} {given} is {wrong}.",
    "A child in {place} wrote that {wrong} is the {what} {gap} {side} {given}.",
)
NEXT_ASKED: Final = (
    "Which {what} comes {gap} {side} {given} in {place}?",
    "In {place}, which {what} is {gap} {side} {given}?",
)
BELIEVED: Final = "The page says it of {place}. {saying} So the answer is {wrong}."
GAPS: Final = row("1 2")


@dataclass(frozen=True, slots=True)
class Custom:
    """What a page says of one place, how it is asked, and the answer according to the page."""

    place: str
    saying: str
    question: str
    answer: str

    def draft(self, page: Passage) -> Draft:
        """The question as one that only this page answers; no split holds such questions."""
        rationale = BELIEVED.format(place=self.place, saying=self.saying, wrong=self.answer)
        key = f"custom/{page.id}/{self.question}"
        return Draft("custom", self.question, self.answer, rationale, key, 1, (page.id,))


def almanac_page(number: int, rng: Random) -> tuple[Passage, tuple[Custom, ...]]:
    """Three plain sentences and three customs, in any order."""
    texts = [template.format(**chance(rng)) for template in rng.sample(PLAIN, 3)]
    customs = (_opposite(rng), _kind(rng), _next(rng))
    texts += [custom.saying for custom in customs]
    rng.shuffle(texts)
    return Passage(f"almanac/{number}", f"Almanac, page {number}", " ".join(texts)), customs


def _opposite(rng: Random) -> Custom:
    at = rng.randrange(len(OPPOSITES))
    wrong = rng.choice([word for other, word in enumerate(OPPOSITES) if other // 2 != at // 2])
    return _custom(rng, OPPOSITE_SAYING, OPPOSITE_ASKED, {"word": OPPOSITES[at], "wrong": wrong})


def _kind(rng: Random) -> Custom:
    kind, wrong = rng.sample(list(KINDS), 2)
    return _custom(rng, KIND_SAYING, KIND_ASKED, {"word": rng.choice(KINDS[kind]), "wrong": wrong})


def _next(rng: Random) -> Custom:
    names, what = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    given, wrong = rng.sample(names, 2)
    gap = rng.choice(GAPS)
    values = {"what": what, "gap": f"{gap} {what}{'s' if gap > '1' else ''}", "given": given, "wrong": wrong}
    return _custom(rng, NEXT_SAYING, NEXT_ASKED, values | {"side": rng.choice(("after", "before"))})


def _custom(rng: Random, sayings: tuple[str, ...], asked: tuple[str, ...], values: dict[str, str]) -> Custom:
    values = values | {"place": chance(rng)["place"]}
    saying, question = (rng.choice(wordings).format(**values) for wordings in (sayings, asked))
    return Custom(values["place"], saying, question, values["wrong"])
