"""The two cheap probes as numbers: pure functions of retrieval scores, a question, and a draft's probabilities.

Scores are those of one retriever, before any rank fusion; a feature that cannot be computed is missing from
the result, never guessed. `features` names them all; what texts say is in `evidence`.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from apportion.route.ask.evidence import hashed_words, kind_features, passage_features
from apportion.route.index.bm25 import Hits

TOP = 10  # scores that most features look at
CANONICAL_TOP = 100
SMALLEST_NORMALISER = 1e-9

_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_QUOTED = re.compile('["“”«»]')


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

    >>> score_entropy([2.0, 5e-324])
    0.0
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size or values.min() <= 0:
        return None
    shares = values / values.sum()
    shares = shares[shares > 0]  # a score may be too small to be a share at all
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
            "score_margin": _margin(scores),
            "score_mean": mean,
            "score_entropy": score_entropy(top),
        }
    return {name: value for name, value in found.items() if value is not None}


def _margin(scores: Sequence[float]) -> float | None:
    """(best - second) / best; None with fewer than two scores or a best that is not above SMALLEST_NORMALISER."""
    return float(1 - scores[1] / scores[0]) if len(scores) > 1 and scores[0] > SMALLEST_NORMALISER else None


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


def features_of_hits(hits: Hits, question: str = "") -> dict[str, float]:
    """Retrieval features of a search result: its scores, the rarity of the terms, what its passages hold."""
    numbers = retrieval_features(hits.scores, hits.corpus_log_likelihood) | rarity_features(hits.rarities)
    return numbers | passage_features(question, hits.passages)


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
        **kind_features(question),
        **hashed_words(question),
    }


def draft_features(token_logprobs: Sequence[float] | None, margin: float | None = None) -> dict[str, float]:
    """Features of one short greedy Direct draft, thinking off.

    Args:
        token_logprobs: natural log-probabilities of the visible tokens; None or empty gives no feature.
        margin: log-probability of the first visible token minus that of the second likeliest, where known.

    Source: length-normalised NLL of a draft, X-Router (METHODS section 2); the others are ours.

    >>> draft_features([-0.5, -1.5])["draft_nll_mean"]
    1.0
    """
    losses = _losses(token_logprobs)
    if not losses:
        return {}
    more = {"draft_nll_max": max(losses), "draft_tokens": float(len(losses))}
    return _loss_features("draft", losses) | more | _first_margin("draft", margin)


def retrieved_features(token_logprobs: Sequence[float] | None, margin: float | None = None) -> dict[str, float]:
    """Features of the RAG pipeline's answer, for the second decision.

    Args:
        token_logprobs, margin: as in `draft_features`.

    >>> retrieved_features([-0.5, -1.5])
    {'rag_nll_mean': 1.0, 'rag_nll_first': 0.5, 'rag_nll_sum': 2.0}
    """
    losses = _losses(token_logprobs)
    return _loss_features("rag", losses) | _first_margin("rag", margin) if losses else {}


def _first_margin(prefix: str, margin: float | None) -> dict[str, float]:
    return {} if margin is None else {f"{prefix}_margin_first": margin}


def _losses(token_logprobs: Sequence[float] | None) -> list[float]:
    return [max(0.0, -value) for value in token_logprobs or ()]


def _loss_features(prefix: str, losses: Sequence[float]) -> dict[str, float]:
    total = math.fsum(losses)
    found = {"nll_mean": total / len(losses), "nll_first": losses[0], "nll_sum": total}
    return {f"{prefix}_{name}": value for name, value in found.items()}
