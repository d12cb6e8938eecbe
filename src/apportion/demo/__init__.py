"""A small world and the small model that ships with the package, to show both halves on.

Importing this is light: no torch, no transformers.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from apportion.core.artifact import write_bytes
from apportion.demo.dialogues import PROMPTS_PATH
from apportion.demo.texts import calibration_text, dialogue_text, heldout_text
from apportion.demo.world import DEFAULT_SEED, FAMILIES, SPLITS, Question, World, world

__all__ = [
    "DEFAULT_SEED",
    "FAMILIES",
    "SPLITS",
    "TRAFFIC",
    "Question",
    "World",
    "calibration_text",
    "dialogue_text",
    "heldout_text",
    "model_path",
    "prompts_path",
    "thinned",
    "traffic",
    "world",
    "write_corpus",
    "write_questions",
]

# Shares of the families in what a service is asked: mostly easy questions, about what is well known.
TRAFFIC: Final = {"fact": 3, "chain": 1, "comparison": 1, "date": 1, "arithmetic": 1, "simple": 3}


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


def write_questions(
    path: Path,
    split: str,
    *,
    limit: int | None = None,
    as_traffic: bool = False,
    seed: int = DEFAULT_SEED,
) -> int:
    """Write a split's questions as JSON lines; returns their number.

    Args:
        path: the file.
        split: train, validation or test.
        limit: at most so many, spread evenly, so that families and popularities keep their shares; None: all.
        as_traffic: in the mixture `TRAFFIC` rather than in that of the split.
        seed: of the world.
    """
    found = world(seed).questions(split)
    limit = len(found) if limit is None else limit
    found = traffic(found, limit) if as_traffic else thinned(found, limit)
    _write_lines(path, [asdict(question) for question in found])
    return len(found)


def traffic(questions: tuple[Question, ...], limit: int) -> tuple[Question, ...]:
    """At most so many questions in the mixture `TRAFFIC`, each family evenly spaced over its own questions.

    Fewer come back where a family has too few for its share.
    """
    own = {name: [question for question in questions if question.dataset == name] for name in TRAFFIC}
    limit = min(limit, *(len(own[name]) * sum(TRAFFIC.values()) // share for name, share in TRAFFIC.items()))
    counts = {name: limit * share // sum(TRAFFIC.values()) for name, share in TRAFFIC.items()}
    return tuple(q for name in TRAFFIC for q in thinned(tuple(own[name]), counts[name]))


def thinned(questions: tuple[Question, ...], limit: int) -> tuple[Question, ...]:
    """At most so many questions, evenly spaced, so that families and popularities keep their shares."""
    count = min(limit, len(questions))
    return tuple(questions[place * len(questions) // count] for place in range(count))


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(path, "".join(lines).encode())
