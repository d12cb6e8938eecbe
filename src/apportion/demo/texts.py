"""Plain text of the world, for calibration and perplexity: pages and dialogues in the model's own format.

Calibration text is of the known society and the train split; held-out text is of the test split's society and
questions, in other wordings than the corpus.
"""

from collections.abc import Iterator
from random import Random
from typing import Final

from apportion.core.seeds import derived_seed
from apportion.demo import dialogues, documents
from apportion.demo.documents import Passage
from apportion.demo.people import Society
from apportion.demo.world import DEFAULT_SEED, Question, world

CALIBRATION_CHARS: Final = 200_000
DISTRACTORS: Final = 3


def calibration_text(chars: int = CALIBRATION_CHARS, seed: int = DEFAULT_SEED) -> str:
    """Pages of known people and dialogues of the train split, about `chars` characters."""
    return _text(seed, "calibration", "train", chars)


def heldout_text(chars: int = CALIBRATION_CHARS, seed: int = DEFAULT_SEED) -> str:
    """Pages of known people in other wordings and dialogues of the test split: for perplexity."""
    return _text(seed, "heldout", "test", chars)


def _text(seed: int, stream: str, split: str, chars: int) -> str:
    rng = Random(derived_seed(seed, "demo", "texts", stream))
    parts, length = list[str](), 0
    pieces = _pieces(seed, split, rng)
    while length < chars:
        parts.append(next(pieces))
        length += len(parts[-1])
    return "".join(parts)


def _pieces(seed: int, split: str, rng: Random) -> Iterator[str]:
    """Without end: one page, then one dialogue of each pipeline."""
    here = world(seed)
    questions = here.questions(split)
    pages = (*here.known_pages(), *here.common_pages(), *here.unseen_pages(split))
    shelf = {passage.id: passage for passage in pages}
    while True:
        yield dialogues.page_text(_page(here.known, rng))
        for pipeline in dialogues.PIPELINES:
            yield _dialogue(pipeline, rng.choice(questions), shelf, rng)


def _page(society: Society, rng: Random) -> Passage:
    if rng.random() < 0.25:
        return documents.company_page(rng.choice(society.companies), rng)
    return documents.person_page(rng.choice(society.people[: len(society.people) // 2]), rng)


def _dialogue(pipeline: str, question: Question, shelf: dict[str, Passage], rng: Random) -> str:
    shown: list[Passage] = []
    if "rag" in pipeline:
        ids = [*question.gold, *rng.sample(list(shelf), DISTRACTORS)]
        shown = [shelf[id_] for id_ in rng.sample(ids, len(ids))]
    asked = dialogues.prompt_text(pipeline, question.question, shown)
    return asked + dialogues.completion_text(pipeline, question.answers[0], question.rationale)
