"""Questions about a society: single facts and chains. Each with its chain of thought.

A rationale is a list of short statements in fixed words, one per fact and one per step of arithmetic; the
answer follows from the last. It never copies the wording of the documents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from apportion.demo import words
from apportion.demo.documents import company_id, person_id, town_id
from apportion.demo.people import Company, Person, Society

Entity = Person | Company | str  # a string is a town


@dataclass(frozen=True, slots=True)
class Draft:
    """A question before it is given an id and a split.

    Attributes:
        key: what is asked, whatever the wording; splits are drawn by it.
        names: the people and companies that the answer depends on.
    """

    family: str
    question: str
    answer: str
    rationale: str
    key: str
    hops: int
    gold: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation: how it is asked, how it is stated, where it leads and on which page it stands."""

    name: str
    asked: tuple[str, ...]
    stated: str
    value: Callable[[Entity], str | None]
    page: Callable[[str], str]
    phrase: str = ""  # how the value is named inside a longer question; only if it is a person or company


def _field(name: str) -> Callable[[Entity], str | None]:
    def read(entity: Entity) -> str | None:
        value = getattr(entity, name)
        return None if value is None else str(value)

    return read


def _country(entity: Entity) -> str:
    return words.towns()[str(entity)]


PERSON: Final = {
    relation.name: relation
    for relation in (
        Relation(
            "born",
            ("In which year was {n} born?", "What is the birth year of {n}?", "Which year was {n} born in?"),
            "{n} was born in {v}.",
            _field("born"),
            person_id,
        ),
        Relation(
            "town",
            ("Where was {n} born?", "In which town was {n} born?", "What is the birthplace of {n}?"),
            "{n} was born in {v}.",
            _field("town"),
            person_id,
        ),
        Relation(
            "profession",
            ("What is the profession of {n}?", "What does {n} do for a living?", "What is the trade of {n}?"),
            "{n} is a {v}.",
            _field("profession"),
            person_id,
        ),
        Relation(
            "spouse",
            ("Who is {n} married to?", "Who is the spouse of {n}?", "Whom did {n} marry?"),
            "{n} is married to {v}.",
            _field("spouse"),
            person_id,
            "the person who is the spouse of {n}",
        ),
        Relation(
            "company",
            ("Which company does {n} work for?", "Where does {n} work?", "What is the employer of {n}?"),
            "{n} works for {v}.",
            _field("company"),
            person_id,
            "the company where {n} works",
        ),
        Relation(
            "joined",
            ("When did {n} join the company?", "Since when has {n} been there?", "In which year did {n} join?"),
            "{n} joined the company in {v}.",
            _field("joined"),
            person_id,
        ),
        Relation(
            "teacher",
            ("Who was the teacher of {n}?", "Who taught {n}?", "By whom was {n} taught?"),
            "The teacher of {n} was {v}.",
            _field("teacher"),
            person_id,
            "the person who was the teacher of {n}",
        ),
    )
}
COMPANY: Final = {
    relation.name: relation
    for relation in (
        Relation(
            "founder",
            ("Who founded {n}?", "Who is the founder of {n}?"),
            "{n} was founded by {v}.",
            _field("founder"),
            company_id,
            "the founder of {n}",
        ),
        Relation(
            "founded",
            ("In which year was {n} founded?", "What is the founding year of {n}?"),
            "{n} was founded in {v}.",
            _field("founded"),
            company_id,
        ),
        Relation(
            "town",
            ("Where are the headquarters of {n}?", "In which town is {n} based?"),
            "{n} is based in {v}.",
            _field("town"),
            company_id,
        ),
        Relation(
            "product",
            ("What does {n} make?", "What is made by {n}?"),
            "{n} makes {v}.",
            _field("product"),
            company_id,
        ),
    )
}
TOWN: Final = Relation(
    "country",
    ("In which country is {n}?", "To which country does {n} belong?"),
    "{n} is in {v}.",
    _country,
    town_id,
)
COUNTRY_OF_BIRTH: Final = ("In which country was {n} born?", "What is the country of birth of {n}?")
COUNTRY_OF_SEAT: Final = (
    "In which country are the headquarters of {n}?",
    "In which country is {n} based?",
)
# Thinking is thorough where it need not be, as it is in models that think before every answer.
THOUGHT: Final = (
    "The question is about {n} alone. {stated} Is anyone else asked about? No, nobody else. "
    "Does anything have to be reckoned? No, the fact is enough. Let me check that nothing is missing. "
    "Nothing is missing, the question is simple. So the answer is {v}."
)
# Paths of a chain: each relation leads to the entity of the next. The last is asked for.
CHAINS: Final = (
    ("teacher", "town", "country"),
    ("spouse", "town", "country"),
    ("company", "town", "country"),
    ("company", "founder", "town"),
    ("company", "founder", "profession"),
    ("company", "founder", "born"),
    ("teacher", "born"),
    ("teacher", "profession"),
    ("spouse", "profession"),
    ("spouse", "born"),
    ("company", "founder"),
    ("company", "product"),
)


def name_of(entity: Entity) -> str:
    return entity if isinstance(entity, str) else entity.name


def relation_of(entity: Entity, name: str) -> Relation:
    """The relation of this name that an entity of this kind has."""
    if isinstance(entity, Person):
        return PERSON[name]
    return COMPANY[name] if isinstance(entity, Company) else TOWN


def entity_named(society: Society, name: str) -> Entity:
    return society.by_name.get(name) or society.company_by_name.get(name) or name


def stated(entity: Entity, name: str) -> str:
    """One fact in the words of a rationale."""
    relation = relation_of(entity, name)
    return relation.stated.format(n=name_of(entity), v=relation.value(entity))


def page_of(entity: Entity, name: str) -> str:
    """The id of the passage that states this fact."""
    return relation_of(entity, name).page(name_of(entity))


def fact(society: Society, entity: Entity, rng: Random) -> Draft | None:
    """A question for one relation of a person, company or town; None if this one has no such relation."""
    kinds = {Person: PERSON, Company: COMPANY}.get(type(entity), {"country": TOWN})
    name = rng.choice(list(kinds))
    relation = relation_of(entity, name)
    answer = relation.value(entity)
    if answer is None:
        return None
    return Draft(
        "fact",
        rng.choice(relation.asked).format(n=name_of(entity)),
        answer,
        THOUGHT.format(n=name_of(entity), stated=stated(entity, name), v=answer),
        f"fact/{name_of(entity)}/{name}",
        1,
        (page_of(entity, name),),
        () if isinstance(entity, str) else (name_of(entity),),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """One relation followed: from an entity to its value."""

    entity: Entity
    relation: str

    @property
    def value(self) -> str | None:
        return relation_of(self.entity, self.relation).value(self.entity)


def walk(society: Society, start: Entity, path: tuple[str, ...]) -> list[Step] | None:
    """The steps along a path; None where a relation is missing, leads back, or no page names both ends.

    A founder's page names only those whom the founder hired, so a search reaches the founder only from them.
    """
    steps, entity, seen = list[Step](), start, {name_of(start)}
    for name in path:
        step = Step(entity, name)
        value = step.value
        if value is None or value in seen:
            return None
        steps.append(step)
        seen.add(value)
        entity = entity_named(society, value)
    founders = [step.value for step in steps if step.relation == "founder"]
    if founders and len(path) == 3 and name_of(start) not in society.by_name[str(founders[0])].hired:
        return None
    return steps


def asked_along(steps: list[Step], rng: Random) -> str:
    """The question of a path: `Where was the teacher of X born?`."""
    country = steps[-1].relation == "country"
    asking = steps[-2] if country else steps[-1]
    phrase = name_of(steps[0].entity)
    for step in steps[: steps.index(asking)]:
        phrase = relation_of(step.entity, step.relation).phrase.format(n=phrase)
    wordings: tuple[str, ...]
    if country:
        wordings = COUNTRY_OF_BIRTH if isinstance(asking.entity, Person) else COUNTRY_OF_SEAT
    else:
        wordings = relation_of(asking.entity, asking.relation).asked
    return rng.choice(wordings).format(n=phrase)


def chain(society: Society, person: Person, rng: Random) -> Draft | None:
    """A question along a path of two or three relations, starting at a person."""
    path = rng.choice(CHAINS)
    steps = walk(society, person, path)
    if steps is None:
        return None
    members = [step.entity for step in steps if not isinstance(step.entity, str)]
    return Draft(
        "chain",
        asked_along(steps, rng),
        str(steps[-1].value),
        " ".join(stated(step.entity, step.relation) for step in steps),
        f"chain/{person.name}/{'/'.join(path)}",
        len(path),
        tuple(dict.fromkeys(page_of(step.entity, step.relation) for step in steps)),
        tuple(name_of(member) for member in members),
    )
