"""Questions with gold answers, read from JSON lines: id, dataset, question, answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apportion.core.errors import InputError
from apportion.core.lines import Offenders, json_lines

MAX_QUESTION_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its gold answers (at least one); ids are unique in a dataset."""

    id: str
    dataset: str
    question: str
    answers: tuple[str, ...]


def read_questions(path: Path, *, limit: int | None = None) -> list[Question]:
    """Questions in the order of the file; the dataset is the file's name where a line names none.

    Raises:
        InputError: all lines without question or answers, with their numbers, in one error; no question.
    """
    offenders = Offenders(str(path), "give each line an id, a question and a list of answers")
    found: list[Question] = []
    lines: dict[tuple[str, str], int] = {}
    for number, value in json_lines(path, offenders):
        question = _question(value, number, path.stem, offenders)
        if question is None:
            continue
        first = lines.setdefault((question.dataset, question.id), number)
        if first != number:
            offenders.add(f"line {number}", f"id {question.id!r} is already on line {first}")
        found.append(question)
    offenders.raise_if_any()
    if not found:
        raise InputError(f"{path}: holds no question", "give at least one question with answers")
    return found[:limit]


def _question(value: dict[str, Any], number: int, dataset: str, offenders: Offenders) -> Question | None:
    place = f"line {number}"
    text, answers = value.get("question"), value.get("answers", value.get("answer"))
    if not isinstance(text, str) or not text.strip():
        offenders.add(place, "no question")
    elif any("\ud800" <= character <= "\udfff" for character in text):
        offenders.add(place, "question holds half a character (a lone surrogate)")
    elif len(text) > MAX_QUESTION_CHARS:
        offenders.add(place, f"question of {len(text)} characters, at most {MAX_QUESTION_CHARS}")
    elif not (gold := _answers(answers)):
        offenders.add(place, "no answers")
    else:
        return Question(str(value.get("id", number)), str(value.get("dataset", dataset)), text, gold)
    return None


def _answers(value: object) -> tuple[str, ...]:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, Sequence):
        return ()
    return tuple(text for item in value if isinstance(item, str | int | float) and (text := str(item).strip()))
