"""Which questions are the same one: by text, whatever their ids, letter case and blanks."""

from collections.abc import Sequence

import numpy as np

from apportion.core.arrays import NDArray


def same_text(question: str) -> str:
    """The text by which a question is recognised: case folded, blanks collapsed.

    >>> same_text("  Who founded\\tBERN? "), same_text("STRASSE") == same_text("Straße")
    ('who founded bern?', True)
    """
    return " ".join(question.casefold().split())


def groups_of(questions: Sequence[str]) -> NDArray[np.int64]:
    """[n] number of the different question that each is, by first appearance; one without a text is its own.

    >>> groups_of(["Who?", "Where?", "who? ", "", ""]).tolist()
    [0, 1, 0, 2, 3]
    """
    numbers: dict[str | int, int] = {}
    keys = (same_text(question) or row for row, question in enumerate(questions))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
