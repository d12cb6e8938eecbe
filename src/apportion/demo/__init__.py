"""A small world and the small model that ships with the package, to show both halves on.

Importing this is light: no torch, no transformers.
"""

import json
from dataclasses import asdict
from pathlib import Path

from apportion.core.artifact import write_bytes
from apportion.demo.dialogues import PROMPTS_PATH
from apportion.demo.texts import calibration_text, heldout_text
from apportion.demo.world import DEFAULT_SEED, FAMILIES, SPLITS, Question, World, world

__all__ = [
    "DEFAULT_SEED",
    "FAMILIES",
    "SPLITS",
    "Question",
    "World",
    "calibration_text",
    "heldout_text",
    "model_path",
    "prompts_path",
    "thinned",
    "world",
    "write_corpus",
    "write_questions",
]


def model_path() -> Path:
    """The folder of the shipped model: Hugging Face format with tokenizer and model card."""
    return Path(__file__).parent / "model"


def prompts_path() -> Path:
    """The prompts of the four pipelines that the model was trained with."""
    return PROMPTS_PATH


def write_corpus(path: Path, seed: int = DEFAULT_SEED) -> int:
    """Write the corpus as JSON lines (id, title, text); returns the number of passages."""
    passages = world(seed).corpus()
    _write_lines(path, [asdict(passage) for passage in passages])
    return len(passages)


def write_questions(path: Path, split: str, *, limit: int | None = None, seed: int = DEFAULT_SEED) -> int:
    """Write a split's questions as JSON lines; returns their number.

    Args:
        path: the file.
        split: train, validation or test.
        limit: at most so many, spread evenly, so that families and popularities keep their shares; None: all.
        seed: of the world.
    """
    found = world(seed).questions(split)
    if limit is not None:
        found = thinned(found, limit)
    _write_lines(path, [asdict(question) for question in found])
    return len(found)


def thinned(questions: tuple[Question, ...], limit: int) -> tuple[Question, ...]:
    """At most so many questions, evenly spaced, so that families and popularities keep their shares."""
    count = min(limit, len(questions))
    return tuple(questions[place * len(questions) // count] for place in range(count))


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(path, "".join(lines).encode())
