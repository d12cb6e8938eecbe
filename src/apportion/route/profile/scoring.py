"""An answer against its gold answers: SQuAD-normalised token F1 and exact match.

Source: the SQuAD 1.1 evaluation script (Rajpurkar et al. 2016): lower case, no punctuation, no articles,
single spaces; the maximum over gold answers. We differ where gold is a number: then both scores are exact
match of the values (so 1,200 equals 1200.0), and where gold is one of the choices yes, no, true, false or a
letter: then both are exact match of the normalised text.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?%?")
_CHOICE = re.compile(r"yes|no|true|false|[a-h]")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Score:
    """Both in [0, 1]; for numbers and choices f1 equals em."""

    f1: float
    em: float


def score(answer: str, gold: Sequence[str]) -> Score:
    """The best score over gold answers.

    >>> score("the Eiffel Tower!", ["Eiffel tower", "Tour Eiffel"])
    Score(f1=1.0, em=1.0)
    >>> score("1,200 dollars", ["1200"])
    Score(f1=1.0, em=1.0)
    >>> score("12", ["120"])
    Score(f1=0.0, em=0.0)
    """
    each = [_score_one(answer, one) for one in gold]
    return Score(max(one.f1 for one in each), max(one.em for one in each))


def normalise(text: str) -> str:
    """Text as SQuAD compares it.

    >>> normalise("The  U.S., an example")
    'us example'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def number_in(text: str) -> float | None:
    """The value of a text that is one number (with unit words after it or a currency sign before it).

    >>> number_in("$1,250.50"), number_in("17 apples"), number_in("between 3 and 4")
    (1250.5, 17.0, None)
    """
    found = _NUMBER.findall(text)
    if len(found) != 1:
        return None
    return float(found[0].replace("$", "").replace(",", "").replace("%", ""))


def _score_one(answer: str, gold: str) -> Score:
    if _NUMBER.fullmatch(gold.strip()):
        given, wanted = number_in(answer), number_in(gold)
        same = float(given is not None and given == wanted)
        return Score(same, same)
    if _CHOICE.fullmatch(_bare(gold)):  # articles are kept: the choice may be "A"
        same = float(_bare(answer) == _bare(gold))
        return Score(same, same)
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
