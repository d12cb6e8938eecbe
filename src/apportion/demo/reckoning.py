"""Questions that need facts and reckoning: comparisons of two or three, dates and ages.

Apart from `questions` because these combine facts of several entities; the same Draft comes out.
"""

from random import Random
from typing import Final

from apportion.demo import words
from apportion.demo.people import Company, Person, Society
from apportion.demo.questions import Draft, Entity, name_of, page_of

EARLIEST: Final = {
    "born": (
        "Who was born earliest, {names}?",
        "Who is the oldest, {names}?",
        "Which of these people was born first: {names}?",
    ),
    "founded": (
        "Which company was founded earliest, {names}?",
        "Which is the oldest company, {names}?",
    ),
    "joined": ("Who joined the company earliest, {names}?", "Who was first to join the company: {names}?"),
}
LATEST: Final = {
    "born": (
        "Who was born latest, {names}?",
        "Who is the youngest, {names}?",
        "Which of these people was born last: {names}?",
    ),
    "founded": (
        "Which company was founded latest, {names}?",
        "Which is the youngest company, {names}?",
    ),
    "joined": ("Who joined the company latest, {names}?", "Who was last to join the company: {names}?"),
}
AGE_THEN: Final = ("How old was {n} on joining the company?", "At what age did {n} join the company?")
TURNED: Final = ("In which year did {n} turn {k}?", "In what year was the birthday number {k} of {n}?")
AT_WORK: Final = (
    "For how many years had {n} been at the company in {k}?",
    "How many years after joining the company was {k} for {n}?",
)
OLDER: Final = (
    "How many years lie between the births of {n} and {m}?",
    "What is the age difference of {n} and {m} in years?",
)


def comparison(society: Society, entities: list[Entity], rng: Random) -> Draft | None:
    """Who or which of two or three is first or last; None when two share the year."""
    relation = "founded" if isinstance(entities[0], Company) else rng.choice(("born", "born", "joined"))
    years = {name_of(entity): int(getattr(entity, relation)) for entity in entities}
    if len(set(years.values())) < len(entities):
        return None
    first = rng.random() < 0.5
    year = (min if first else max)(years.values())
    answer = next(name for name, value in years.items() if value == year)
    wording = rng.choice((EARLIEST if first else LATEST)[relation])
    listed = " ".join(f"{name} {value}." for name, value in years.items())
    return Draft(
        "comparison",
        wording.format(names=_alternatives(list(years))),
        answer,
        f"{listed} The {'earliest' if first else 'latest'} is {year}.",
        f"comparison/{relation}/{first}/{'/'.join(sorted(years))}",
        len(entities),
        tuple(page_of(entity, relation) for entity in entities),
        tuple(years),
    )


def _alternatives(names: list[str]) -> str:
    return words.listed(names).replace(" and ", " or ")


def date(society: Society, person: Person, other: Person, rng: Random) -> Draft | None:
    """A year or an age that must be reckoned from one or two facts."""
    ask = rng.choice((_age_then, _turned, _at_work, _older))
    return ask(person, other, rng)


def _age_then(person: Person, other: Person, rng: Random) -> Draft:
    return _dated(
        person,
        rng.choice(AGE_THEN).format(n=person.name),
        person.joined - person.born,
        ("born", "joined"),
        f"{person.joined} - {person.born} = {person.joined - person.born}.",
        "age",
    )


def _turned(person: Person, other: Person, rng: Random) -> Draft:
    age = rng.randrange(11, 80)
    return _dated(
        person,
        rng.choice(TURNED).format(n=person.name, k=age),
        person.born + age,
        ("born",),
        f"{person.born} + {age} = {person.born + age}.",
        f"turned {age}",
    )


def _at_work(person: Person, other: Person, rng: Random) -> Draft:
    years = rng.randrange(3, 60)
    then = person.joined + years
    return _dated(
        person,
        rng.choice(AT_WORK).format(n=person.name, k=then),
        years,
        ("joined",),
        f"{then} - {person.joined} = {years}.",
        f"at work {then}",
    )


def _older(person: Person, other: Person, rng: Random) -> Draft | None:
    if person.name == other.name or person.born == other.born:
        return None
    late, early = max(person.born, other.born), min(person.born, other.born)
    return Draft(
        "date",
        rng.choice(OLDER).format(n=person.name, m=other.name),
        str(late - early),
        f"{person.name} {person.born}. {other.name} {other.born}. {late} - {early} = {late - early}.",
        f"date/older/{'/'.join(sorted((person.name, other.name)))}",
        2,
        (page_of(person, "born"), page_of(other, "born")),
        (person.name, other.name),
    )


def _dated(person: Person, question: str, answer: int, relations: tuple[str, ...], sum_stated: str, key: str) -> Draft:
    facts = " ".join(f"{relation.capitalize()} {getattr(person, relation)}." for relation in relations)
    return Draft(
        "date",
        question,
        str(answer),
        f"{facts} {sum_stated}",
        f"date/{person.name}/{key}",
        len(relations),
        tuple(dict.fromkeys(page_of(person, relation) for relation in relations)),
        (person.name,),
    )
