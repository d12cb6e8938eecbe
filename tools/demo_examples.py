"""Training examples of the demonstration model: pages of known people, and dialogues in the four formats.

Contexts come from a real search over the known society, and over a society and almanac pages made afresh every
thousand examples; no page or name of the unseen societies is ever used, and no question that a split may hold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

import numpy as np

from apportion.demo import almanac, dialogues, documents, words
from apportion.demo.dialogues import END_THINK
from apportion.demo.documents import Passage
from apportion.demo.people import Person, make_society
from apportion.demo.questions import Draft
from apportion.demo.search import Search
from apportion.demo.world import ALMANAC_PAGES, World, draft, trainable

Encoded = tuple[list[int], list[int]]  # token ids and the weight of learning each
PATIENCE = 40  # examples that did not fit before a chunk counts as full
REFRESH = 1000  # examples between two fresh societies
FRESH_CIRCLES = 24
FRESH_ALMANAC = 40  # pages, numbered after those of the corpus
DEPTHS = (5, 5, 5, 5, 4, 3)  # passages shown
RARELY = (0.05, 0.001)  # weights of the best and the least known of the rarely seen, against 1
PAGE_WEIGHT, ANSWER_WEIGHT, STEP_WEIGHT = 1, 3, 1

# pipeline, family, whose facts, share of examples
MIXTURE: tuple[tuple[str, str, str, float], ...] = (
    ("page", "person", "known", 17),
    ("page", "company", "known", 4),
    ("page", "town", "none", 1),
    ("direct", "fact", "known", 13),
    ("direct", "chain", "known", 0.4),
    ("direct", "comparison", "known", 0.5),
    ("direct", "date", "known", 0.5),
    ("direct", "fact", "fresh", 5),
    ("direct", "chain", "fresh", 1),
    ("direct", "comparison", "fresh", 0.5),
    ("direct", "date", "fresh", 0.5),
    ("direct", "arithmetic", "none", 1),
    ("direct", "simple", "none", 7),
    ("cot", "fact", "known", 2),
    ("cot", "chain", "known", 4),
    ("cot", "comparison", "known", 3),
    ("cot", "date", "known", 3),
    ("cot", "fact", "fresh", 0.5),
    ("cot", "chain", "fresh", 0.7),
    ("cot", "comparison", "fresh", 0.5),
    ("cot", "date", "fresh", 0.5),
    ("cot", "arithmetic", "none", 5),
    ("cot", "simple", "none", 2),
    ("rag", "fact", "fresh", 4.5),
    ("rag", "fact", "known", 1.5),
    ("rag", "chain", "fresh", 0.05),
    ("rag", "comparison", "fresh", 0.2),
    ("rag", "date", "fresh", 0.2),
    ("rag", "comparison", "known", 0.1),
    ("rag", "date", "known", 0.1),
    ("rag", "custom", "fresh", 0.3),
    ("rag", "arithmetic", "none", 0.2),
    ("rag+cot", "fact", "fresh", 1.2),
    ("rag+cot", "chain", "fresh", 3.5),
    ("rag+cot", "comparison", "fresh", 2.5),
    ("rag+cot", "date", "fresh", 2),
    ("rag+cot", "fact", "known", 0.3),
    ("rag+cot", "chain", "known", 0.6),
    ("rag+cot", "comparison", "known", 0.5),
    ("rag+cot", "date", "known", 0.5),
    ("rag+cot", "arithmetic", "none", 0.1),
    ("rag+cot", "custom", "fresh", 0.1),
)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt that is only read, and a completion that is learnt, its parts with their weights."""

    prompt: str
    learnt: tuple[tuple[str, int], ...]


def examples(world: World, rng: Random) -> Iterator[Example]:
    """Training examples without end."""
    recipes = [entry[:3] for entry in MIXTURE]
    ends = list(accumulate(entry[3] for entry in MIXTURE))
    people, common = list(world.known.people), [*world.common_pages(), *world.known_chronicle()]
    popularity = list(accumulate(_popularity(world)))
    while True:
        fresh = make_society(rng, FRESH_CIRCLES, world.names)
        pages = [*documents.pages(world.known, rng), *documents.pages(fresh, rng), *common]
        customs = [almanac.almanac_page(ALMANAC_PAGES + number, rng) for number in range(1, FRESH_ALMANAC + 1)]
        search = Search([*pages, *(page for page, _ in customs)])
        for _ in range(REFRESH):
            pipeline, family, whose = rng.choices(recipes, cum_weights=ends)[0]
            known = rng.choices(people, cum_weights=popularity, k=24)
            if pipeline == "page":
                yield _page(world, family, known[0], rng)
                continue
            society = fresh if whose == "fresh" else world.known
            some = fresh.people if whose == "fresh" else tuple(dict.fromkeys(known))
            item = _custom(customs, rng) if family == "custom" else draft(family, society, some, rng)
            if item is None or (whose != "fresh" and not trainable(item)):
                continue
            example = _dialogue(pipeline, item, search, rng, needs_gold=whose == "fresh")
            if example is not None:
                yield example


def _custom(customs: list[tuple[Passage, tuple[almanac.Custom, ...]]], rng: Random) -> Draft:
    page, told = rng.choice(customs)
    return rng.choice(told).draft(page)


def _popularity(world: World) -> Iterator[float]:
    """1 for the often seen; falling geometrically over the rarely seen."""
    yield from (1.0 for _ in world.often)
    high, low = RARELY
    steps = len(world.rarely) - 1
    yield from (high * (low / high) ** (place / steps) for place in range(steps + 1))


def _page(world: World, kind: str, person: Person, rng: Random) -> Example:
    if kind == "person":
        page = documents.person_page(person, rng)
    elif kind == "company":
        page = documents.company_page(world.known.company_by_name[person.company], rng)
    else:
        page = documents.town_page(rng.choice(list(words.towns())), rng)
    return Example("", ((dialogues.page_text(page), PAGE_WEIGHT),))


def _dialogue(pipeline: str, item: Draft, search: Search, rng: Random, *, needs_gold: bool) -> Example | None:
    """A dialogue; None where the search missed a page without which nobody could know the answer."""
    shown = []
    if "rag" in pipeline:
        shown = [passage for _, passage in search.find(item.question, rng.choice(DEPTHS))]
        found = {passage.id for passage in shown}
        if needs_gold and any(id_ not in found for id_ in item.gold if not id_.startswith("town/")):
            return None
    prompt = dialogues.prompt_text(pipeline, item.question, shown)
    completion = dialogues.completion_text(pipeline, item.answer, item.rationale)
    steps, mark, answer = completion.rpartition(END_THINK)
    parts = ((steps + mark, STEP_WEIGHT),) if mark else ()
    return Example(prompt, (*parts, (answer, ANSWER_WEIGHT)))


def packed(
    stream: Iterator[Example], tokenizer: Any, count: int, length: int, pad: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of `count` rows of `length` tokens, examples packed and none cut (longer ones are left out): tokens, and each one's weight.

    Args:
        stream: examples.
        tokenizer: a `tokenizers.Tokenizer`.
        count: rows of a chunk.
        length: tokens of a row.
        pad: the id that fills what is left.
    """
    waiting: list[Encoded] = []
    while True:
        tokens = np.full((count, length), pad, np.uint16)
        weights = np.zeros((count, length), np.uint8)
        used = np.zeros(count, np.int64)
        missed: list[Encoded] = []
        while len(missed) < PATIENCE:
            ids, gains = waiting.pop() if waiting else _encoded(next(stream), tokenizer)
            if len(ids) > length:
                continue
            fitting = np.flatnonzero(used + len(ids) <= length)
            if len(fitting) == 0:
                missed.append((ids, gains))
                continue
            row = fitting[0]
            part = slice(used[row], used[row] + len(ids))
            tokens[row, part], weights[row, part] = ids, gains
            used[row] += len(ids)
        waiting = missed
        yield tokens, weights


def _encoded(example: Example, tokenizer: Any) -> Encoded:
    ids = tokenizer.encode(example.prompt).ids if example.prompt else []
    gains = [0] * len(ids)
    for text, weight in example.learnt:
        part = tokenizer.encode(text).ids
        ids = ids + part
        gains += [weight] * len(part)
    return ids, gains
