"""The world: one known society, three unseen ones, their corpus, and questions in three splits.

    popularity   who                                        in the model's training
    often        the better known half of the known people  hundreds of times and more
    rarely       the other half                             ever more seldom, down to a few times
    never        the people of the unseen societies         never; each split has its own society
    none         arithmetic and simple questions name no one

Questions about known people, and about nobody, belong to pools drawn by what they ask: half to `model`, which the
model may be trained on, the rest to the three splits, which it never sees. Only for single facts may it see the
fact of a split asked in other words, never in the words of the split. Knows no prompts, models or files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from typing import Final
from zlib import crc32

from apportion.core.seeds import derived_seed
from apportion.demo import almanac, chronicle, documents, reckoning, stories, words
from apportion.demo.documents import Passage
from apportion.demo.people import CIRCLE, Person, Society, make_society
from apportion.demo.questions import Draft, Entity, chain, fact

DEFAULT_SEED: Final = 7
FAMILIES: Final = ("fact", "chain", "comparison", "date", "arithmetic", "simple")
ENTITY_FAMILIES: Final = FAMILIES[:4]
SPLITS: Final = ("train", "validation", "test")
POOLS: Final = (("model", 50), ("train", 72), ("validation", 78), ("test", 100))  # upper ends in percent
# Most questions that people ask are easy ones about what is well known.
QUESTIONS: Final = {"train": 300, "validation": 75, "test": 300}  # of a family
TWICE: Final = ("fact", "simple")  # families of twice as many
SHARES: Final = {"often": 0.6, "rarely": 0.1, "never": 0.3}
KNOWN_CIRCLES: Final = 160
UNSEEN_CIRCLES: Final = {"train": 80, "validation": 30, "test": 60}
ALMANAC_PAGES: Final = 600
MENTIONS: Final = {"often": (6, 12), "rarely": (0, 4), "never": (4, 9)}  # in the chronicle, of each name
IN_THE_NEWS: Final = 0.06  # share of the unseen who are in the chronicle at all
TRIES: Final = 500  # draws for each question wanted


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a split.

    Attributes:
        id: `test/chain/0012`.
        dataset: the family.
        answers: accepted answers.
        known: whether the model saw the facts in training; None where no fact is needed.
        popularity: often, rarely, never or none.
        hops: facts needed.
        gold: ids of the passages that state them.
        rationale: a chain of thought that ends in the answer.
        names: the people and companies that the answer depends on.
    """

    id: str
    dataset: str
    question: str
    answers: tuple[str, ...]
    split: str
    known: bool | None
    popularity: str
    hops: int
    gold: tuple[str, ...]
    rationale: str
    names: tuple[str, ...]


def pool_of(key: str) -> str:
    """`model` or the split to which a question of this key belongs, in all its wordings."""
    place = crc32(key.encode()) % 100
    return next(name for name, end in POOLS if place < end)


def trainable(item: Draft) -> bool:
    """Whether the model may be trained on a question about known people or nobody; no split holds such a one."""
    in_other_words = item.family == "fact" and crc32(item.question.encode()) % 2 == 0
    return in_other_words or pool_of(item.key) == "model"


def draft(family: str, society: Society, people: Sequence[Person], rng: Random) -> Draft | None:
    """A question of a family about some of these people; None where the draw has no answer (draw again)."""
    if family == "arithmetic":
        return stories.arithmetic(rng)
    if family == "simple":
        return stories.simple(rng)
    person = rng.choice(people)
    if family == "fact":
        company = society.company_by_name[person.company]
        return fact(society, company if rng.random() < 0.2 else person, rng)
    if family == "chain":
        return chain(society, person, rng)
    if family == "date":
        return reckoning.date(society, person, rng)
    return reckoning.comparison(society, _compared(society, people, rng), rng)


def _compared(society: Society, people: Sequence[Person], rng: Random) -> list[Entity]:
    """Two or three people, or as many companies."""
    count = rng.choice((2, 3))
    if rng.random() < 0.8 or len(people) < 4 * CIRCLE:
        return list(rng.sample(people, count))
    names = sorted({person.company for person in people})
    return [society.company_by_name[name] for name in rng.sample(names, count)]


@dataclass(frozen=True)
class World:
    """Everything there is, from one seed."""

    seed: int

    @cached_property
    def known(self) -> Society:
        """The society whose facts the model is trained on; people in order of popularity."""
        return make_society(self._rng("known"), KNOWN_CIRCLES)

    @cached_property
    def unseen(self) -> dict[str, Society]:
        """For each split, a society that no training data mention."""
        taken = set(self.known.names)
        found = {}
        for split in SPLITS:
            found[split] = make_society(self._rng("unseen", split), UNSEEN_CIRCLES[split], taken)
            taken |= found[split].names
        return found

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all people and companies: what a freshly made society must not use."""
        return self.known.names.union(*(society.names for society in self.unseen.values()))

    @property
    def often(self) -> tuple[Person, ...]:
        return self.known.people[: len(self.known.people) // 2]

    @property
    def rarely(self) -> tuple[Person, ...]:
        return self.known.people[len(self.known.people) // 2 :]

    def common_pages(self) -> Iterator[Passage]:
        """Towns and the almanac: pages that belong to no society."""
        rng = self._rng("common")
        for town in words.towns():
            yield documents.town_page(town, rng)
        for number in range(1, ALMANAC_PAGES + 1):
            yield almanac.almanac_page(number, rng)[0]

    def known_pages(self) -> Iterator[Passage]:
        """Pages of the known society, in the wording that the corpus has."""
        yield from documents.pages(self.known, self._rng("pages", "known"))
        yield from self.known_chronicle()

    def known_chronicle(self) -> Iterator[Passage]:
        """The chronicle of the known society: the better known, the more often named."""
        rng = self._rng("chronicle", "known")
        counts = chronicle.mentions(_names_of(self.often), MENTIONS["often"], rng)
        counts |= chronicle.mentions([person.name for person in self.rarely], MENTIONS["rarely"], rng)
        yield from chronicle.chronicle_pages(counts, "page", rng)

    def unseen_pages(self, split: str) -> Iterator[Passage]:
        """Pages of a split's unseen society, and the news of some of its people."""
        yield from documents.pages(self.unseen[split], self._rng("pages", split))
        rng = self._rng("chronicle", split)
        counts = chronicle.mentions(_names_of(self.unseen[split].people), MENTIONS["never"], rng, IN_THE_NEWS)
        yield from chronicle.chronicle_pages(counts, f"{split} news", rng)

    def corpus(self) -> tuple[Passage, ...]:
        """All passages: known and unseen societies, towns, almanac, chronicle."""
        found = [*self.known_pages(), *self.common_pages()]
        for split in SPLITS:
            found += self.unseen_pages(split)
        return tuple(found)

    def questions(self, split: str) -> tuple[Question, ...]:
        """The questions of a split, family by family.

        Raises:
            ValueError: not the name of a split.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        found: list[Question] = []
        for family in FAMILIES:
            size = QUESTIONS[split] * (2 if family in TWICE else 1)
            for popularity, count in self._quotas(family, size):
                drafts = self._drafts(family, popularity, split, count)
                found += [
                    self._question(item, popularity, split, number)
                    for number, item in enumerate(drafts, start=len(found))
                ]
        return tuple(found)

    def _quotas(self, family: str, count: int) -> list[tuple[str, int]]:
        if family not in ENTITY_FAMILIES:
            return [("none", count)]
        return [(popularity, round(share * count)) for popularity, share in SHARES.items()]

    def _drafts(self, family: str, popularity: str, split: str, count: int) -> list[Draft]:
        society = self.unseen[split] if popularity == "never" else self.known
        people = {"often": self.often, "rarely": self.rarely}.get(popularity, society.people)
        rng = self._rng("questions", split, family, popularity)
        found: dict[str, Draft] = {}
        for _ in range(TRIES * count):
            item = draft(family, society, people, rng)
            if item is None:
                continue
            if popularity == "never" or (not trainable(item) and pool_of(item.key) == split):
                found.setdefault(item.key, item)
            if len(found) == count:
                return list(found.values())
        raise AssertionError(f"{split}, {family}, {popularity}: fewer than {count} questions exist")

    def _question(self, item: Draft, popularity: str, split: str, number: int) -> Question:
        return Question(
            id=f"{split}/{item.family}/{number:04d}",
            dataset=item.family,
            question=item.question,
            answers=(item.answer,),
            split=split,
            known=None if popularity == "none" else popularity != "never",
            popularity=popularity,
            hops=item.hops,
            gold=item.gold,
            rationale=item.rationale,
            names=item.names,
        )

    def _rng(self, *names: str) -> Random:
        return Random(derived_seed(self.seed, "demo", *names))


def _names_of(people: Sequence[Person]) -> list[str]:
    """People and the companies they work for."""
    return [person.name for person in people] + sorted({person.company for person in people})


@cache
def world(seed: int = DEFAULT_SEED) -> World:
    """The world of a seed; the shipped model was trained on the default one.

    >>> world().questions("test")[0].id
    'test/fact/0000'
    """
    return World(seed)
