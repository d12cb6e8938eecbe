"""Features of texts: the question's kind and words, what the passages hold of it, what an answer says.

Pure functions. An answer that is not there gives no feature; a question always gives all of its own.
"""

import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from apportion.route.ask.features import HASHED_WORDS, WORD_PREFIX
from apportion.route.index.corpus import Passage

_WORD = re.compile(r"\w+(?:[.,']\w+)*")
_COMMON_WORDS = """
a an the of in on at to for and or is are was were be been by with from as that which who whom whose what when where
how why did do does has have had it its this these those he she they his her their him them also than both same one i
you we my your our if there then so not no but about into can could would will
"""
_COMMON = frozenset(_COMMON_WORDS.split())
_NAME = re.compile(r"\b[A-Z][\w'’-]*(?:\s+(?:of|the|de|la|von|van)?\s*[A-Z][\w'’-]*)*")
_KINDS: Mapping[str, re.Pattern[str]] = {
    "question_polar": re.compile(r"(?i)^\W*(is|are|was|were|do|does|did|can|could|has|have|had|will|would|should)\b"),
    "question_compares": re.compile(r"(?i)\b(both|same|which of|older|younger|earlier|later|more|larger)\b|\w,? or \w"),
    "question_counts": re.compile(r"(?i)\bhow (many|much)\b"),
    "question_person": re.compile(r"(?i)\b(who|whose|whom)\b"),
    "question_time": re.compile(r"(?i)\bwhen\b|\b(what|which) (year|date|month|day)\b"),
    "question_place": re.compile(r"(?i)\bwhere\b|\b(what|which) (city|country|state|county|town)\b"),
}
JUDGED = {"direct": "draft", "rag": "rag"}  # answers that a router reads before it goes on: prefix of features
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_ABSTAINS = re.compile(
    r"(?i)\b(don'?t know|do not know|does not|doesn'?t|unknown|unclear|unable|insufficient|cannot|can'?t|sorry"
    r"|not (?:provided|mentioned|specified|given|enough|available|stated|clear|contain\w*|possible)"
    r"|no (?:information|answer|mention|evidence))\b|^\W*none\W*$"
)


def content_words(text: str) -> list[str]:
    """Lower-case words of a text but for the commonest.

    >>> content_words("Who wrote the Origin of Species?")
    ['wrote', 'origin', 'species']
    """
    return [word for word in _WORD.findall(text.lower()) if word not in _COMMON]


def kind_features(question: str) -> dict[str, float]:
    """What the question asks for, each 0 or 1 (several may be 1), and how many sentences it has. Source: ours.

    >>> found = kind_features("How many people live there?")
    >>> found["question_counts"], found["question_polar"], found["question_sentences"]
    (1.0, 0.0, 1.0)
    """
    found = {name: float(bool(pattern.search(question))) for name, pattern in _KINDS.items()}
    return {**found, "question_sentences": float(max(1, len(_SENTENCE.findall(question))))}


def hashed_words(question: str) -> dict[str, float]:
    """An embedding of the question that needs no model: its content words in signed buckets, of length one.

    Source: feature hashing, Weinberger et al., ICML 2009; the number of buckets is ours.

    >>> round(sum(value**2 for value in hashed_words("Who founded Bern?").values()), 6)
    1.0
    """
    vector = np.zeros(HASHED_WORDS)
    for word in content_words(question):
        code = zlib.crc32(word.encode())
        vector[code % HASHED_WORDS] += 1.0 if code & 0x10000 else -1.0
    length = float(np.linalg.norm(vector))
    shares = (vector / length if length else vector).tolist()
    return {f"{WORD_PREFIX}{i:02}": value for i, value in enumerate(shares)}


def passage_features(question: str, passages: Sequence[Passage]) -> dict[str, float]:
    """What the passages hold of the question: its content words, and its names together in one of them.

    Source: names that occur together in a corpus tell that it knows of the matter (QuCo-RAG); here the corpus
    is what was retrieved. A question without names, or without content words, lacks the feature.

    >>> passage_features("Did Ada meet Babbage?", [Passage("1", "", "Ada met Babbage"), Passage("2", "", "Ada")])
    {'passages_cover': 0.6666666666666666, 'passages_together': 1.0}
    """
    texts = [f"{one.title} {one.text}" for one in passages]
    asked, held = content_words(question), {word for text in texts for word in content_words(text)}
    found = {"passages_cover": _share(asked, held)} if asked else {}
    names = {name.lower() for name in _NAME.findall(" ".join(question.split()[1:]))}
    if names:
        counts = (sum(name in text.lower() for name in names) for text in texts)
        found["passages_together"] = max(counts, default=0) / len(names)
    return found


def abstains(answer: str) -> bool:
    """Whether an answer is empty or says that it does not know.

    >>> abstains("I do not know."), abstains("Bern")
    (True, False)
    """
    return not answer.strip() or bool(_ABSTAINS.search(answer))


def answer_features(prefix: str, answer: str, question: str, passages: Sequence[Passage]) -> dict[str, float]:
    """What an answer says and what of it the passages hold.

    Args:
        prefix: "draft" or "rag". passages: none where no search was made; then two features are missing.

    Source: a retrieved answer that abstains, or that its passages do not hold, is worth a second look (RASER);
    a draft that they hold is likelier right (ours; METHODS section 3).

    >>> found = answer_features("draft", "Bern", "Capital of Switzerland?", [Passage("1", "Bern", "a capital")])
    >>> found["draft_in_passages"], found["draft_abstains"]
    (1.0, 0.0)
    """
    words, none = content_words(answer), abstains(answer)
    found = {f"{prefix}_words": float(len(answer.split())), f"{prefix}_abstains": float(none)}
    if prefix == "rag":
        found["rag_in_question"] = _share(words, set(content_words(question)))
    if passages:
        text = " ".join(f"{one.title} {one.text}" for one in passages)
        held = _plain(answer) in _plain(text) and bool(_plain(answer))
        found[f"{prefix}_in_passages"] = float(held and not none)
        found[f"{prefix}_words_in_passages"] = 0.0 if none else _share(words, set(content_words(text)))
    return found


def _share(words: Sequence[str], among: set[str]) -> float:
    return sum(word in among for word in words) / len(words) if words else 0.0


def _plain(text: str) -> str:
    """Words one blank apart, with a blank at either end, so that whole words are found."""
    words = _WORD.findall(text.lower())
    return f" {' '.join(words)} " if words else ""
