"""Questions that need facts and reckoning: how far two or three are apart, dates and ages.

Every answer is a number that no part of the question names, so that a guess is hardly ever right.

Apart from `questions` because these combine facts of several entities; the same Draft comes out.
"""

from random import Random
from typing import Final

from apportion.demo import words
from apportion.demo.people import Company, Person, Society
from apportion.demo.questions import Draft, Entity, name_of, page_of

APART: Final = {
    "born": ("How many years lie between the births of {names}?", "How many years apart were {names} born?"),
    "founded": (
        "How many years lie between the foundings of {names}?",
        "How many years apart were {names} founded?",
    ),
    "joined": (
        "How many years apart did {names} join the company?",
        "How many years lie between the first days at work of {names}?",
    ),
}
# Of three or more the first and the last have to be found before anything is reckoned.
SPREAD: Final = {
    "born": (
        "How many years lie between the first and the last birth of {names}?",
        "How much older in years is the oldest than the youngest of {names}?",
    ),
    "founded": (
        "How many years lie between the first and the last founding of {names}?",
        "How much older in years is the oldest than the youngest company of {names}?",
    ),
    "joined": (
        "How many years after the first of them did the last of {names} join the company?",
        "How many years lie between the first and the last to join the company of {names}?",
    ),
}
AGE_THEN: Final = ("How old was {n} on joining the company?", "At what age did {n} join the company?")
AGE_AFTER: Final = (
    "How old was {n} when {k} years had passed since joining the company?",
    "What was the age of {n} after {k} years at the company?",
)
TWICE_AS_OLD: Final = (
    "In which year was {n} twice as old as on joining the company?",
    "When had the age at which {n} joined the company doubled?",
)
AT_WORK: Final = (
    "For how many years had {n} been at the company in {k}?",
    "How many years after joining the company was {k} for {n}?",
)


def comparison(society: Society, entities: list[Entity], rng: Random) -> Draft | None:
    """How far two or three are apart, the first from the last; None when two share the year."""
    relation = "founded" if isinstance(entities[0], Company) else rng.choice(("born", "born", "joined"))
    years = {name_of(entity): int(getattr(entity, relation)) for entity in entities}
    if len(set(years.values())) < len(entities):
        return None
    early, late = min(years.values()), max(years.values())
    wording = rng.choice((APART if len(entities) == 2 else SPREAD)[relation])
    listed = " ".join(f"{name} {year}." for name, year in years.items())
    return Draft(
        "comparison",
        wording.format(names=words.listed(list(years))),
        str(late - early),
        f"{listed} The first is {early}. The last is {late}. {late} - {early} = {late - early}.",
        f"comparison/{relation}/{'/'.join(sorted(years))}",
        len(entities),
        tuple(page_of(entity, relation) for entity in entities),
        tuple(years),
    )


def date(society: Society, person: Person, rng: Random) -> Draft:
    """A year or an age that must be reckoned from one or two facts."""
    ask = rng.choice((_age_then, _age_after, _twice_as_old, _at_work))
    return ask(person, rng)


def _age_then(person: Person, rng: Random) -> Draft:
    question = rng.choice(AGE_THEN).format(n=person.name)
    return _dated(person, question, person.joined - person.born, ("born", "joined"), _age(person), "age")


def _age_after(person: Person, rng: Random) -> Draft:
    age, years = person.joined - person.born, rng.randrange(2, 40)
    question = rng.choice(AGE_AFTER).format(n=person.name, k=years)
    steps = f"{_age(person)} {age} + {years} = {age + years}."
    return _dated(person, question, age + years, ("born", "joined"), steps, f"age after {years}")


def _twice_as_old(person: Person, rng: Random) -> Draft:
    age = person.joined - person.born
    question = rng.choice(TWICE_AS_OLD).format(n=person.name)
    steps = f"{_age(person)} {person.joined} + {age} = {person.joined + age}."
    return _dated(person, question, person.joined + age, ("born", "joined"), steps, "twice as old")


def _at_work(person: Person, rng: Random) -> Draft:
    years = rng.randrange(3, 60)
    then = person.joined + years
    question = rng.choice(AT_WORK).format(n=person.name, k=then)
    return _dated(person, question, years, ("joined",), f"{then} - {person.joined} = {years}.", f"at work {then}")


def _age(person: Person) -> str:
    return f"{person.joined} - {person.born} = {person.joined - person.born}."


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
