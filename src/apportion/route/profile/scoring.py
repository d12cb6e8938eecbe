"""An answer against its gold answers: SQuAD-normalised token F1 and exact match.

Source: the SQuAD 1.1 evaluation script (Rajpurkar et al. 2016): lower case, no punctuation, no articles,
single spaces; the maximum over gold answers. We differ by what gold is:

    a number        both scores are equality of values (1,200 equals 1200.0); of several numbers in an answer the
                    one after its last "=" counts
    a year          (1000 to 2099 without separators) as a number, or by F1, so "June 5, 1990" against 1990 earns
                    part of a point
    a choice        yes, no, true, false or a letter: exact match; a sentence that begins with yes or no is that
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"[-+]?[$€£]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?%?")
_YEAR = re.compile(r"1\d{3}|20\d{2}")
_CHOICE = re.compile(r"yes|no|true|false|[a-h]")
_LEADING = re.compile(r"(yes|no)\b(?!-|\s+(?:and|or)\s+(?:yes|no)\b)")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SAME = str.maketrans({"−": "-", "‐": "-", "‑": "-", "–": "-", "’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " "})


@dataclass(frozen=True, slots=True)
class Score:
    """Both in [0, 1]; for numbers and choices f1 equals em."""

    f1: float
    em: float


def score(answer: str, gold: Sequence[str]) -> Score:
    """The best score over gold answers.

    Args:
        answer: as extracted. gold: at least one.

    Source: see the top of the file.

    >>> score("the Eiffel Tower!", ["Eiffel tower", "Tour Eiffel"])
    Score(f1=1.0, em=1.0)
    >>> score("1,200 dollars", ["1200"]), score("12", ["120"])
    (Score(f1=1.0, em=1.0), Score(f1=0.0, em=0.0))
    >>> score("Yes, both are British.", ["yes"]), score("2 * 1.5 = 3 bolts", ["3"])
    (Score(f1=1.0, em=1.0), Score(f1=1.0, em=1.0))
    >>> score("June 5, 1990", ["1990"])
    Score(f1=0.5, em=0.0)
    """
    answer = answer.translate(_SAME)
    each = [_score_one(answer, one.translate(_SAME)) for one in gold]
    return Score(max(one.f1 for one in each), max(one.em for one in each))


def normalise(text: str) -> str:
    """Text as SQuAD compares it.

    >>> normalise("The  U.S., an example")
    'us example'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def number_in(text: str) -> float | None:
    """The value of a text that is one number (with unit words after it or a currency sign before it).

    >>> number_in("$1,250.50"), number_in("17 apples"), number_in("between 3 and 4"), number_in("2 + 2 = 4")
    (1250.5, 17.0, None, 4.0)
    >>> number_in("1,200,000"), number_in("1,2,3"), number_in("1,2345"), number_in("1234,567")
    (1200000.0, None, None, None)
    """
    found = _NUMBER.findall(text.rpartition("=")[2])
    if len(found) != 1:
        return None
    return float(re.sub("[$€£,%]", "", found[0]))


def _score_one(answer: str, gold: str) -> Score:
    if _NUMBER.fullmatch(gold.strip()):
        given, wanted = number_in(answer), number_in(gold)
        same = float(given is not None and given == wanted)
        return _as_text(answer, gold) if _YEAR.fullmatch(gold.strip()) and not same else Score(same, same)
    bare = _bare(gold)
    if _CHOICE.fullmatch(bare):  # articles are kept: the choice may be "A"
        leading = _LEADING.match(answer.lower().lstrip(" *\"'("))
        same = float(_bare(answer) == bare or (leading is not None and leading[1] == bare))
        return Score(same, same)
    return _as_text(answer, gold)


def _as_text(answer: str, gold: str) -> Score:
    got, want = normalise(answer), normalise(gold)
    return Score(_token_f1(got.split(), want.split()), float(got == want))


def _bare(text: str) -> str:
    return text.lower().translate(_PUNCTUATION).strip()


def _token_f1(got: list[str], want: list[str]) -> float:
    if not got or not want:
        return float(got == want)
    common = sum((Counter(got) & Counter(want)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(got), common / len(want)
    return 2 * precision * recall / (precision + recall)
