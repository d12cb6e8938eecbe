"""What kind of answer a question asks for, read from its words alone: the prompt and the extraction follow it."""

import re
from typing import Literal, get_args

Kind = Literal["short", "yes_no", "number"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_QUESTION_CHARS = 100_000  # that are looked at; of a longer text the last ones, where what is asked mostly stands

_YES_NO = re.compile(
    r"(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|may|might|must)(?:n't|n’t)?\s", re.I
)
_AMOUNT = re.compile(
    r"\bhow (?:many|much|old|long|far|tall|fast|big)\b|\bwhat (?:is|was|are|will be|would be) the (?:total|average|sum|"
    r"difference|cost|price|number|percentage|ratio|value)\b|\bwhat (?:percent|fraction)|\bfind the\b|\bcalculate\b",
    re.I,
)
_QUANTITY = re.compile(
    r"\d[\d,.]*|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|fifty|hundred|dozen|"
    r"half|third|quarter|twice|thrice|double|triple)\b",
    re.I,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")


def kind_of(question: str) -> Kind:
    """The kind of answer that a question asks for.

    yes_no: its last sentence begins with an auxiliary verb and offers no choice ("or"). number: it tells of at
    least two quantities in more than one sentence (or under an "if") and asks for an amount. short: all others,
    among them questions for a number that is a fact ("how many wives had ...?").

    Returns:
        One of `KINDS`.

    Source: ours; the forms are those of HotpotQA's comparison questions, StrategyQA and GSM8K.

    >>> kind_of("Were Ada Lovelace and Alan Turing of the same nationality?")
    'yes_no'
    >>> kind_of("Ann has 3 pens. Bo has twice as many. How many pens have they together?")
    'number'
    >>> kind_of("how many points did the defense give up in 2015"), kind_of("Is the Rhine or the Elbe longer?")
    ('short', 'short')
    """
    question = question.strip()[-MAX_QUESTION_CHARS:]
    sentences = _SENTENCE.split(question)
    if _YES_NO.match(sentences[-1]) and " or " not in sentences[-1]:
        return "yes_no"
    told = len(sentences) > 1 or re.match(r"\s*if\b", question, re.I) is not None
    if told and _AMOUNT.search(question) and len(_QUANTITY.findall(question)) >= 2:
        return "number"
    return "short"
