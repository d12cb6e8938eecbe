"""Questions with gold answers, read from JSON lines, JSON or CSV.

id         text or number; the line's number when missing
dataset    the file's name when missing
question   text
answers    a list, a text or a number; also called answer or golden_answers. In CSV a JSON list or one answer
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apportion.core.errors import InputError
from apportion.core.lines import HALF, Offenders, holds_half, rows
from apportion.route.ask.kinds import MAX_QUESTION_CHARS

ANSWER_KEYS = ("answers", "golden_answers", "answer")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its gold answers (at least one); ids are unique in a dataset."""

    id: str
    dataset: str
    question: str
    answers: tuple[str, ...]


def read_questions(path: Path, *, limit: int | None = None) -> list[Question]:
    """Questions in the order of the file; the dataset is the file's name where a line names none.

    Args:
        path: a file of the kinds above.
        limit: the first so many; the whole file is read and checked all the same.

    Raises:
        InputError: all lines without question or answers, with their numbers, in one error; no question.
        ArtifactError: the file cannot be read.
    Cost: one pass over the file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "capitals.jsonl"
    >>> _ = file.write_text('{"question": "Capital of Switzerland?", "golden_answers": ["Bern"]}')
    >>> read_questions(file)
    [Question(id='1', dataset='capitals', question='Capital of Switzerland?', answers=('Bern',))]
    """
    offenders = Offenders(str(path), "give each line an id, a question and a list of answers")
    found: list[Question] = []
    places: dict[tuple[str, str], str] = {}
    for number, place, value in rows(path, offenders):
        question = _question(value, number, place, path.stem, offenders)
        if question is None:
            continue
        first = places.setdefault((question.dataset, question.id), place)
        if first != place:
            offenders.add(place, f"id {question.id!r} is already on {first}")
        found.append(question)
    offenders.raise_if_any()
    if not found:
        raise InputError(f"{path}: holds no question", "give at least one question with answers")
    return found[:limit]


def _question(value: dict[str, Any], number: int, place: str, dataset: str, offenders: Offenders) -> Question | None:
    text, answers = value.get("question"), next((value[key] for key in ANSWER_KEYS if key in value), None)
    if not isinstance(text, str) or not text.strip():
        offenders.add(place, "no question")
    elif len(text) > MAX_QUESTION_CHARS:
        offenders.add(place, f"question of {len(text)} characters, at most {MAX_QUESTION_CHARS}")
    elif not (gold := _answers(answers)):
        offenders.add(place, "no answers")
    else:
        given = value.get("id")
        name = str(number if given in (None, "") else given)
        found = Question(name, str(value.get("dataset") or dataset), text, gold)
        if not holds_half(found.id, found.dataset, found.question, *found.answers):
            return found
        offenders.add(place, HALF)
    return None


def _answers(value: object) -> tuple[str, ...]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _listed(value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, Sequence):
        return ()
    return tuple(text for item in value if isinstance(item, str | int | float) and (text := str(item).strip()))


def _listed(text: str) -> object:
    """A list that was written as text, as CSV must have it; the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text
