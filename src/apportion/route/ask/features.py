"""Every feature that a router may read, by name: what it is and what must be done before it is known.

    question    the text of the question alone; free
    retrieval   a search
    draft       one short Direct answer; the draft's words are sought in the passages, so a search too
    answer      the answer of the RAG pipeline, known only at the second decision

Names are the columns of a profile and what a saved router asks for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Group = Literal["question", "retrieval", "draft", "answer"]
HASHED_WORDS = 64
WORD_PREFIX = "question_hash_"
PREFIXES: Mapping[str, Group] = MappingProxyType({"question_": "question", "draft_": "draft", "rag_": "answer"})


@dataclass(frozen=True, slots=True)
class Feature:
    """A named number that a router may use; `group` says which probe it costs.

    Attributes:
        source: who proposed it; "ours" where nobody we know of did.
        searches: whether it needs a search although its group does not say so.
    """

    name: str
    group: Group
    description: str
    source: str = "ours"
    searches: bool = False


_XROUTER = "X-Router (METHODS section 2)"
_NQC = "Shtok et al., TOIS 30(2), 2012"
_ICTF = "He and Ounis, SPIRE 2004"
_RASER = "RASER, arXiv 2606.02488"

_RETRIEVAL = (
    Feature("nqc_top1_k10", "retrieval", "std of the top 10 scores / top score (default NQC)", _NQC),
    Feature("nqc_mean_k10", "retrieval", "std of the top 10 scores / their mean", _NQC),
    Feature("nqc_canonical_k100", "retrieval", "std of the top 100 scores / |log-likelihood under the corpus|", _NQC),
    Feature("score_top", "retrieval", "best score"),
    Feature("score_gap", "retrieval", "best score minus second best"),
    Feature("score_margin", "retrieval", "best score minus second best, as a share of the best"),
    Feature("score_mean", "retrieval", "mean of the top 10 scores"),
    Feature("score_entropy", "retrieval", "entropy of the top 10 scores as shares of their sum, in nats"),
    Feature("hits", "retrieval", "how many of the top 10 exist; below 10 the corpus hardly knows the words"),
    Feature("ictf_max", "retrieval", "-log of the rarest query term's share in the corpus, in nats", _ICTF),
    Feature("ictf_mean", "retrieval", "mean of that over the query terms, in nats", _ICTF),
    Feature("passages_cover", "retrieval", "share of the question's content words that the passages hold"),
    Feature("passages_together", "retrieval", "largest share of the question's names in one passage", "QuCo-RAG"),
)
_QUESTION = (
    Feature("question_words", "question", "words in the question"),
    Feature("question_chars", "question", "characters in the question"),
    Feature("question_numbers", "question", "numbers written with digits in the question"),
    Feature("question_capitals", "question", "capitalised words after the first: names, roughly"),
    Feature("question_polar", "question", "1 if it begins with is, did, can ...: the answer is yes or no"),
    Feature("question_compares", "question", "1 if it asks which of two, or whether both or the same"),
    Feature("question_counts", "question", "1 if it asks how many or how much"),
    Feature("question_person", "question", "1 if it asks who or whose"),
    Feature("question_time", "question", "1 if it asks when or what year"),
    Feature("question_place", "question", "1 if it asks where or what city or country"),
    Feature("question_sentences", "question", "sentences; a story told before the question has several"),
)
_DRAFT = (
    Feature("draft_nll_mean", "draft", "mean of -log p over the draft's visible tokens, in nats", _XROUTER),
    Feature("draft_nll_first", "draft", "-log p of the draft's first token, in nats"),
    Feature("draft_nll_max", "draft", "largest -log p in the draft, in nats"),
    Feature("draft_nll_sum", "draft", "-log p of the whole draft, in nats"),
    Feature("draft_margin_first", "draft", "log p of its first token minus that of the second likeliest, in nats"),
    Feature("draft_tokens", "draft", "visible tokens in the draft"),
    Feature("draft_words", "draft", "words in the draft's answer"),
    Feature("draft_abstains", "draft", "1 if the draft says that it does not know", _RASER),
    Feature("draft_in_passages", "draft", "1 if the passages hold the draft's answer", searches=True),
    Feature("draft_words_in_passages", "draft", "share of the draft's words that they hold", searches=True),
)
_ANSWER = (
    Feature("rag_nll_mean", "answer", "mean of -log p over the retrieved answer's tokens, in nats", _RASER),
    Feature("rag_nll_first", "answer", "-log p of its first token, in nats"),
    Feature("rag_nll_sum", "answer", "-log p of the whole, in nats"),
    Feature("rag_margin_first", "answer", "log p of its first token minus that of the second likeliest, in nats"),
    Feature("rag_words", "answer", "words in the retrieved answer"),
    Feature("rag_abstains", "answer", "1 if it says that it does not know", _RASER),
    Feature("rag_in_passages", "answer", "1 if the passages hold the answer", _RASER),
    Feature("rag_words_in_passages", "answer", "share of its words that they hold"),
    Feature("rag_in_question", "answer", "share of its words that the question holds already"),
)
_HASHED = tuple(
    Feature(f"{WORD_PREFIX}{i:02}", "question", f"content words hashed to bucket {i}, signed, unit length", "hashing")
    for i in range(HASHED_WORDS)
)
FEATURES: Mapping[str, Feature] = MappingProxyType(
    {one.name: one for one in (*_RETRIEVAL, *_QUESTION, *_DRAFT, *_ANSWER, *_HASHED)}
)
"""Every feature by name."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be done before some features are known."""

    draft: bool
    search: bool
    answer: bool


def group_of(name: str) -> Group:
    """The group of a feature; one that this program does not know is told by its prefix.

    >>> group_of("nqc_top1_k10"), group_of("draft_of_mine"), group_of("anything")
    ('retrieval', 'draft', 'retrieval')
    """
    if name in FEATURES:
        return FEATURES[name].group
    return next((group for prefix, group in PREFIXES.items() if name.startswith(prefix)), "retrieval")


def is_draft(name: str) -> bool:
    """Whether a feature needs the draft."""
    return group_of(name) == "draft"


def needs_of(names: Iterable[str]) -> Needs:
    """What all these features need together.

    >>> needs_of(["question_words", "draft_nll_mean"])
    Needs(draft=True, search=False, answer=False)
    """
    names = tuple(names)
    groups = {group_of(name) for name in names}
    searches = any(name in FEATURES and FEATURES[name].searches for name in names)
    return Needs("draft" in groups, "retrieval" in groups or searches, "answer" in groups)
