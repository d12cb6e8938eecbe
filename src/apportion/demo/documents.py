"""Documents of the world: pages about people, companies and towns in several wordings, with noise.

A page about one person names the people tied to that person, so a search for a name finds the second hop too.
Noise sentences name other towns and years.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from apportion.demo import words
from apportion.demo.people import Company, Person, Society

BIRTH: Final = (
    "{n} was born in {town} in {born}.",
    "{n} was born in {born} in {town}.",
    "In {born} {n} was born in {town}.",
    "The birthplace of {n}, born in {born}, is {town}.",
    "Born in {town} in {born}, {n} was the youngest child of a large family.",
)
PROFESSION: Final = (
    "{n} is a {profession}.",
    "{He} works as a {profession}.",
    "By trade {he} is a {profession}.",
    "{He} earns {his} living as a {profession}.",
)
SPOUSE: Final = (
    "{He} is married to {spouse}.",
    "{n} married {spouse}.",
    "{He} lives with {spouse}, to whom {he} is married.",
)
PUPIL: Final = (
    "{He} was the teacher of {pupil}.",
    "As a teacher {he} taught {pupil}.",
    "{pupil} was taught by {him}.",
    "A pupil of {n} was {pupil}.",
)
HIRED: Final = (
    "{He} is the founder of {company} and hired {hired}.",
    "As the founder of {company} {he} hired {hired}.",
    "{n} founded the company {company}, where {he} hired {hired}.",
)
WORK: Final = (
    "{n} has worked at {company} since {joined}.",
    "{n} joined {company} in {joined}.",
    "In {joined} {n} joined {company}.",
    "{n} works for {company}, which {he} joined in {joined}.",
)
TEACHER: Final = (
    "{n} was taught by {teacher}.",
    "{His} teacher was {teacher}.",
    "{He} learned the craft from {teacher}.",
    "{teacher} was {his} teacher.",
)
NOISE: Final = (
    "In {year} {he} travelled to {place}.",
    "{He} spent {few} years in {place}.",
    "A street in {place} carries {his} name.",
    "{He} likes {thing} and long walks.",
    "In {year} {he} bought a house in {place}.",
    "{He} keeps {few} dogs.",
    "A portrait of {him} from {year} hangs in {place}.",
)
FOUNDED: Final = (
    "{n} was founded by {founder} in {founded}.",
    "{founder} founded {n} in {founded}.",
    "In {founded} {founder} founded the company {n}.",
    "The founder of {n} is {founder}; the founding year is {founded}.",
)
SEAT: Final = (
    "Its headquarters are in {town}.",
    "The company is based in {town}.",
    "The headquarters of {n} stand in {town}.",
)
PRODUCT: Final = ("It makes {product}.", "The company produces {product}.", "Its main product is {product}.")
STAFF: Final = (
    "The company employs {staff}.",
    "{staff} work there.",
    "Its staff are {staff}.",
)
COMPANY_NOISE: Final = (
    "A second shop opened in {place} in {year}.",
    "In {year} it lost a lawsuit in {place}.",
    "It once sold {thing} as well.",
    "A fire stopped the work in {year}.",
)
TOWN: Final = (
    "{n} is a town in {country}.",
    "The town of {n} lies in {country}.",
    "{n} belongs to {country}.",
    "In {country} lies the town of {n}.",
)
TOWN_NOISE: Final = (
    "It has {many} thousand inhabitants.",
    "The market sells {thing} and {other}.",
    "The bridge was built in {year}.",
    "It rains on {few} days of the week.",
)


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable document."""

    id: str
    title: str
    text: str


def person_id(name: str) -> str:
    return f"person/{words.slug(name)}"


def company_id(name: str) -> str:
    return f"company/{words.slug(name)}"


def town_id(name: str) -> str:
    return f"town/{words.slug(name)}"


def person_page(person: Person, rng: Random) -> Passage:
    """Birth first, then in any order work, ties to others and noise."""
    values = {
        "n": person.name,
        "he": person.he,
        "He": person.he.capitalize(),
        "his": person.his,
        "His": person.his.capitalize(),
        "him": person.him,
        "town": person.town,
        "born": str(person.born),
        "profession": person.profession,
        "company": person.company,
        "joined": str(person.joined),
        "teacher": person.teacher,
        "pupil": person.pupil,
        "spouse": person.spouse or "",
        "hired": words.listed(person.hired) if person.hired else "",
        **chance(rng),
    }
    chosen = [BIRTH, PROFESSION, WORK, TEACHER, PUPIL, NOISE]
    chosen += [SPOUSE] if person.spouse else []
    chosen += [HIRED] if person.hired else []
    chosen += [NOISE] if rng.random() < 0.3 else []
    return Passage(person_id(person.name), person.name, _sentences(chosen, values, rng))


def company_page(company: Company, rng: Random) -> Passage:
    """Founder and founding year, headquarters, product, staff, and noise."""
    values = {
        "n": company.name,
        "founder": company.founder,
        "founded": str(company.founded),
        "town": company.town,
        "product": company.product,
        "staff": words.listed(rng.sample(company.staff, len(company.staff))),
        **chance(rng),
    }
    chosen = [FOUNDED, SEAT, PRODUCT, STAFF] + ([COMPANY_NOISE] if rng.random() < 0.7 else [])
    return Passage(company_id(company.name), company.name, _sentences(chosen, values, rng))


def town_page(town: str, rng: Random) -> Passage:
    """The town's country, and noise."""
    values = {"n": town, "country": words.towns()[town], **chance(rng)}
    return Passage(town_id(town), town, _sentences([TOWN, TOWN_NOISE, TOWN_NOISE], values, rng))


def pages(society: Society, rng: Random) -> Iterator[Passage]:
    """All pages of a society: one for each person and each company."""
    for person in society.people:
        yield person_page(person, rng)
    for company in society.companies:
        yield company_page(company, rng)


def _sentences(chosen: list[tuple[str, ...]], values: dict[str, str], rng: Random) -> str:
    """One wording of each kind; the first kind leads, so that pronouns have someone to point to."""
    rest = chosen[1:]
    rng.shuffle(rest)
    return " ".join(rng.choice(wordings).format(**values) for wordings in [chosen[0], *rest])


def chance(rng: Random) -> dict[str, str]:
    """Values for sentences that say nothing of use."""
    return {
        "year": str(rng.randrange(1905, 2020)),
        "place": rng.choice(list(words.towns())),
        "few": str(rng.randrange(2, 10)),
        "many": str(rng.randrange(11, 99)),
        "thing": rng.choice(words.THINGS),
        "other": rng.choice(words.THINGS),
        "day": rng.choice(words.DAYS),
        "month": rng.choice(words.MONTHS),
        "color": rng.choice(words.COLORS),
        "warm": rng.choice(("warm", "cold", "dry", "wet")),
        "big": rng.choice(("big", "old", "tall")),
        "small": rng.choice(("small", "new", "low")),
    }
