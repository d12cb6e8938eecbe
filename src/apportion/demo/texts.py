"""Plain text of the world: pages for calibration and perplexity, and dialogues for calibrating a rounding.

Perplexity is taken on pages alone. The model never learnt to predict the questions and passages it is given, so
their loss means nothing: measured over whole dialogues it even falls when the model is rounded to 2 bits.
"""

from collections.abc import Iterator
from random import Random
from typing import Final

from apportion.core.seeds import derived_seed
from apportion.demo import dialogues, documents, words
from apportion.demo.documents import Passage
from apportion.demo.people import Society
from apportion.demo.world import DEFAULT_SEED, Question, world

CALIBRATION_CHARS: Final = 200_000
DISTRACTORS: Final = 3


def calibration_text(chars: int = CALIBRATION_CHARS, seed: int = DEFAULT_SEED) -> str:
    """Pages about well-known people, their companies and towns, about `chars` characters."""
    return _joined(_pages(seed, "calibration"), chars)


def heldout_text(chars: int = CALIBRATION_CHARS, seed: int = DEFAULT_SEED) -> str:
    """Pages of the same facts in other wordings than the calibration text and the corpus: for perplexity."""
    return _joined(_pages(seed, "heldout"), chars)


def dialogue_text(chars: int = CALIBRATION_CHARS, seed: int = DEFAULT_SEED) -> str:
    """Dialogues of the train split in all four formats: activations as they are in use, not for perplexity."""
    return _joined(_dialogues(seed), chars)


def _joined(pieces: Iterator[str], chars: int) -> str:
    parts, length = list[str](), 0
    while length < chars:
        parts.append(next(pieces))
        length += len(parts[-1])
    return "".join(parts)


def _pages(seed: int, stream: str) -> Iterator[str]:
    rng = Random(derived_seed(seed, "demo", "texts", stream))
    while True:
        yield dialogues.page_text(_page(world(seed).known, rng))


def _page(society: Society, rng: Random) -> Passage:
    kind = rng.random()
    if kind < 0.05:
        return documents.town_page(rng.choice(list(words.towns())), rng)
    person = rng.choice(society.people[: len(society.people) // 2])
    if kind < 0.25:
        return documents.company_page(society.company_by_name[person.company], rng)
    return documents.person_page(person, rng)


def _dialogues(seed: int) -> Iterator[str]:
    rng = Random(derived_seed(seed, "demo", "texts", "dialogues"))
    here = world(seed)
    questions = here.questions("train")
    pages = (*here.known_pages(), *here.common_pages(), *here.unseen_pages("train"))
    shelf = {passage.id: passage for passage in pages}
    while True:
        for pipeline in dialogues.PIPELINES:
            yield _dialogue(pipeline, rng.choice(questions), shelf, rng)


def _dialogue(pipeline: str, question: Question, shelf: dict[str, Passage], rng: Random) -> str:
    shown: list[Passage] = []
    if "rag" in pipeline:
        ids = [*question.gold, *rng.sample(list(shelf), DISTRACTORS)]
        shown = [shelf[id_] for id_ in rng.sample(ids, len(ids))]
    asked = dialogues.prompt_text(pipeline, question.question, shown)
    return asked + dialogues.completion_text(pipeline, question.answers[0], question.rationale)
