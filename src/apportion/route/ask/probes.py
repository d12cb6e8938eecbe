"""The two cheap probes as named features: pure functions of retrieval scores, a question, and a draft.

Scores are those of one retriever, before any rank fusion; a feature that cannot be computed is missing from
the result, never guessed. Names are the columns of a profile and what a saved router asks for.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from apportion.route.index.bm25 import Hits

Group = Literal["retrieval", "draft", "question"]
TOP = 10  # scores that most features look at
CANONICAL_TOP = 100
SMALLEST_NORMALISER = 1e-9

_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_QUOTED = re.compile('["“”«»]')


@dataclass(frozen=True, slots=True)
class Feature:
    """A named number that a router may use; `group` says which probe it costs."""

    name: str
    group: Group
    description: str


_ALL = (
    Feature("nqc_top1_k10", "retrieval", "std of the top 10 scores / top score (default NQC)"),
    Feature("nqc_mean_k10", "retrieval", "std of the top 10 scores / their mean"),
    Feature("nqc_canonical_k100", "retrieval", "std of the top 100 scores / |log-likelihood under the corpus|"),
    Feature("score_top", "retrieval", "best score"),
    Feature("score_gap", "retrieval", "best score minus second best"),
    Feature("score_mean", "retrieval", "mean of the top 10 scores"),
    Feature("score_entropy", "retrieval", "entropy of the top 10 scores as shares of their sum, in nats"),
    Feature("hits", "retrieval", "how many of the top 10 exist; below 10 the corpus hardly knows the words"),
    Feature("ictf_max", "retrieval", "-log of the rarest query term's share in the corpus, in nats"),
    Feature("ictf_mean", "retrieval", "mean of that over the query terms, in nats"),
    Feature("question_words", "question", "words in the question"),
    Feature("question_chars", "question", "characters in the question"),
    Feature("question_numbers", "question", "numbers written with digits in the question"),
    Feature("question_capitals", "question", "capitalised words after the first: names, roughly"),
    Feature("draft_nll_mean", "draft", "mean of -log p over the draft's visible tokens, in nats"),
    Feature("draft_nll_first", "draft", "-log p of the draft's first token, in nats"),
    Feature("draft_nll_max", "draft", "largest -log p in the draft, in nats"),
    Feature("draft_tokens", "draft", "visible tokens in the draft"),
)
FEATURES: Mapping[str, Feature] = MappingProxyType({feature.name: feature for feature in _ALL})
"""Every feature by name."""


def nqc(scores: Sequence[float], normaliser: float, top: int) -> float | None:
    """Normalised query commitment: population standard deviation of the top scores / |normaliser|.

    None with fewer than two scores or a normaliser of (nearly) zero.

    Source: Shtok, Kurland, Carmel, Raiber and Markovits, "Predicting Query Performance by Query-Drift
    Estimation", ACM TOIS 30(2), 2012, equation 7 (NQC), where the normaliser is the corpus's score for the
    query and k = 100. The top-1 and mean normalisers are ours (METHODS section 2).

    >>> nqc([3.0, 1.0], 2.0, 10)
    0.5
    """
    if len(scores) < 2 or abs(normaliser) < SMALLEST_NORMALISER:
        return None
    return float(np.std(np.asarray(scores[:top], dtype=np.float64))) / abs(normaliser)


def score_entropy(scores: Sequence[float]) -> float | None:
    """Entropy in nats of scores as shares of their sum; None unless all are positive.

    log n when all n are equal, near 0 when one dominates. Ours; the usual clarity-like use of a score list.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size or values.min() <= 0:
        return None
    shares = values / values.sum()
    return float(max(0.0, -(shares * np.log(shares)).sum()))


def retrieval_features(scores: Sequence[float], corpus_log_likelihood: float | None = None) -> dict[str, float]:
    """Features of one retriever's falling scores (any number, also none).

    Args:
        scores: the top 100 or all that were found.
        corpus_log_likelihood: nats; None (a dense retriever) leaves out the canonical NQC.

    >>> retrieval_features([])
    {'hits': 0.0}
    >>> round(retrieval_features([4.0, 2.0])["nqc_top1_k10"], 3)
    0.25
    """
    top = scores[:TOP]
    found: dict[str, float | None] = {"hits": float(len(top))}
    if scores:
        mean = math.fsum(top) / len(top)
        found |= {
            "nqc_top1_k10": nqc(scores, scores[0], TOP),
            "nqc_mean_k10": nqc(scores, mean, TOP),
            "nqc_canonical_k100": nqc(scores, corpus_log_likelihood or 0.0, CANONICAL_TOP),
            "score_top": float(scores[0]),
            "score_gap": float(scores[0] - scores[1]) if len(scores) > 1 else None,
            "score_mean": mean,
            "score_entropy": score_entropy(top),
        }
    return {name: value for name, value in found.items() if value is not None}


def rarity_features(rarities: Sequence[float]) -> dict[str, float]:
    """How rare the query's terms are in the corpus; what hardly any document names, a model hardly knows.

    Args:
        rarities: -log of each query term's share in the corpus, in nats; none gives no feature.

    Source: maximum and mean inverse collection term frequency, He and Ounis, SPIRE 2004 (their AvICTF; that the
    maximum tells what a model knows is ours).

    >>> rarity_features([2.0, 6.0])
    {'ictf_max': 6.0, 'ictf_mean': 4.0}
    """
    if not rarities:
        return {}
    return {"ictf_max": max(rarities), "ictf_mean": math.fsum(rarities) / len(rarities)}


def features_of_hits(hits: Hits) -> dict[str, float]:
    """Retrieval features of a search result."""
    return retrieval_features(hits.scores, hits.corpus_log_likelihood) | rarity_features(hits.rarities)


def question_features(question: str) -> dict[str, float]:
    """Features of the question's text alone; they cost nothing. Ours; length is a known baseline signal.

    >>> question_features("Did Ada Lovelace have 3 children?")["question_numbers"]
    1.0
    """
    words = question.split()
    return {
        "question_words": float(len(words)),
        "question_chars": float(len(question)),
        "question_numbers": float(len(_NUMBERS.findall(question))),
        "question_capitals": float(sum(_QUOTED.sub("", word)[:1].isupper() for word in words[1:])),
    }


def draft_features(token_logprobs: Sequence[float] | None) -> dict[str, float]:
    """Features of one short greedy Direct draft, thinking off.

    Args:
        token_logprobs: natural log-probabilities of the visible tokens; None or empty gives no feature.

    Source: length-normalised NLL of a draft, X-Router (METHODS section 2); first and maximum are ours.

    >>> draft_features([-0.5, -1.5])
    {'draft_nll_mean': 1.0, 'draft_nll_first': 0.5, 'draft_nll_max': 1.5, 'draft_tokens': 2.0}
    """
    if not token_logprobs:
        return {}
    losses = [max(0.0, -value) for value in token_logprobs]
    return {
        "draft_nll_mean": math.fsum(losses) / len(losses),
        "draft_nll_first": losses[0],
        "draft_nll_max": max(losses),
        "draft_tokens": float(len(losses)),
    }
