"""A society: people and companies with their relations, closed under them.

Every relation of a member leads to a member (or to a town, and towns belong to all societies), so a chain of
questions never leaves the society it began in. Knows nothing of documents, questions or splits.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random
from typing import Final

from apportion.demo import words

CIRCLE: Final = 5  # people of one company: its founder and four others
MARRIED: Final = 0.6


@dataclass(frozen=True, slots=True)
class Person:
    """One person; relations are names. `pupil` is whom this person taught, `hired` only founders have."""

    name: str
    she: bool
    born: int
    town: str
    profession: str
    company: str
    joined: int
    teacher: str
    pupil: str
    spouse: str | None
    hired: tuple[str, ...] = ()

    @property
    def he(self) -> str:
        return "she" if self.she else "he"

    @property
    def his(self) -> str:
        return "her" if self.she else "his"

    @property
    def him(self) -> str:
        return "her" if self.she else "him"


@dataclass(frozen=True, slots=True)
class Company:
    """One company, its founder and the four people it employs beside the founder."""

    name: str
    founder: str
    founded: int
    town: str
    product: str
    staff: tuple[str, ...]


@dataclass(frozen=True)
class Society:
    """People in order of popularity (best known first) and their companies."""

    people: tuple[Person, ...]
    companies: tuple[Company, ...]
    by_name: dict[str, Person] = field(repr=False, compare=False)
    company_by_name: dict[str, Company] = field(repr=False, compare=False)

    @property
    def names(self) -> frozenset[str]:
        """Names of all people and companies."""
        return frozenset(self.by_name) | frozenset(self.company_by_name)


def make_society(rng: Random, circles: int, taken: Collection[str] = ()) -> Society:
    """A society of `circles` companies and five times as many people, with no name in `taken`.

    Args:
        rng: the only source of randomness.
        circles: companies, an even number; two circles share teachers and marriages.
        taken: names that must not be used.
    """
    if circles < 2 or circles % 2:
        raise ValueError(f"circles is {circles}, expected an even number of at least 2")
    used = set(taken)
    people: list[Person] = []
    companies: list[Company] = []
    for _ in range(circles // 2):
        pair = _two_circles(rng, used)
        people += pair[0]
        companies += pair[1]
    return Society(
        tuple(people),
        tuple(companies),
        {person.name: person for person in people},
        {company.name: company for company in companies},
    )


def _two_circles(rng: Random, used: set[str]) -> tuple[list[Person], list[Company]]:
    members = [_new_person(rng, used) for _ in range(2 * CIRCLE)]
    names = [name for name, _ in members]
    teacher, spouse = _ties(rng, names)
    pupil = {taught_by: name for name, taught_by in teacher.items()}
    people, companies = [], []
    for first in (0, CIRCLE):
        company, hired = _new_company(rng, used, names[first : first + CIRCLE])
        for place, (name, she) in enumerate(members[first : first + CIRCLE]):
            born, joined = _years(rng, company.founded, founder=place == 0)
            people.append(
                Person(
                    name=name,
                    she=she,
                    born=born,
                    town=rng.choice(list(words.towns())),
                    profession=rng.choice(words.PROFESSIONS),
                    company=company.name,
                    joined=joined,
                    teacher=teacher[name],
                    pupil=pupil[name],
                    spouse=spouse.get(name),
                    hired=hired if place == 0 else (),
                )
            )
        companies.append(company)
    return people, companies


def _new_person(rng: Random, used: set[str]) -> tuple[str, bool]:
    while True:
        name, she = words.person_name(rng)
        if name not in used:
            used.add(name)
            return name, she


def _ties(rng: Random, names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Teachers along one cycle (everyone teaches one); marriages among those not neighbours in it."""
    cycle = rng.sample(names, len(names))
    teacher = {name: cycle[place - 1] for place, name in enumerate(cycle)}
    half = len(cycle) // 2
    spouse: dict[str, str] = {}
    for place in range(half):
        if rng.random() < MARRIED:
            one, other = cycle[place], cycle[place + half]
            spouse[one], spouse[other] = other, one
    return teacher, spouse


def _new_company(rng: Random, used: set[str], circle: list[str]) -> tuple[Company, tuple[str, ...]]:
    name = words.company_name(rng)
    while name in used:
        name = words.company_name(rng)
    used.add(name)
    company = Company(
        name=name,
        founder=circle[0],
        founded=rng.randrange(1930, 1981),
        town=rng.choice(list(words.towns())),
        product=rng.choice(words.PRODUCTS),
        staff=tuple(rng.sample(circle[1:], CIRCLE - 1)),
    )
    return company, tuple(rng.sample(circle[1:], 2))


def _years(rng: Random, founded: int, *, founder: bool) -> tuple[int, int]:
    """Birth and joining: a founder joins in the founding year, the others later."""
    if founder:
        return founded - rng.randrange(21, 46), founded
    joined = founded + rng.randrange(1, 36)
    return joined - rng.randrange(18, 51), joined
