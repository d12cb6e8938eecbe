"""What is known of a whole corpus: its digest, size and how often each term occurs.

Terms are what the BM25 index holds: lower-cased, stemmed words of title and text. The collection's language
model gives the likelihood of a query under the corpus, the normaliser of the canonical NQC.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from apportion.route.index.corpus import Passage

_MODULUS = 1 << 256


def body(passage: Passage) -> str:
    """The text that is indexed and embedded: the title on a line of its own, then the text."""
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text


@dataclass(slots=True)
class Collection:
    """Running statistics; adding a passage and removing it again restores every value.

    Attributes:
        passages, tokens: of the whole corpus. without_terms: passages in which no term is, so that no search finds
            them. term_counts: how often each term occurs.
    """

    passages: int = 0
    tokens: int = 0
    without_terms: int = 0
    term_counts: Counter[str] = field(default_factory=Counter)
    digest_sum: int = 0

    def add(self, passage: Passage, terms: Sequence[str]) -> None:
        self.passages += 1
        self.tokens += len(terms)
        self.without_terms += not terms
        self.term_counts.update(terms)
        self.digest_sum = (self.digest_sum + _digest(passage)) % _MODULUS

    def remove(self, passage: Passage, terms: Sequence[str]) -> None:
        self.passages -= 1
        self.tokens -= len(terms)
        self.without_terms -= not terms
        self.term_counts.subtract(terms)
        for term in set(terms):
            if not self.term_counts[term]:
                del self.term_counts[term]
        self.digest_sum = (self.digest_sum - _digest(passage)) % _MODULUS

    @property
    def digest(self) -> str:
        """64 hex digits that do not depend on the order of passages: the sum of theirs modulo 2^256."""
        return f"{self.digest_sum:064x}"

    def log_likelihood(self, query_terms: Iterable[str]) -> float | None:
        """Sum over query terms of log p(term | corpus) in nats, or None without terms.

        p(term) = (count + 1/2) / (tokens + 1/2 (distinct terms + 1)), so that an unseen term stays finite.
        Source: the normaliser of NQC, Shtok et al., ACM TOIS 30(2), 2012 (their corpus score, with the
        query-likelihood model); the additive smoothing is ours.
        """
        scale = math.log(self.tokens + 0.5 * (len(self.term_counts) + 1))
        parts = [math.log(self.term_counts.get(term, 0) + 0.5) - scale for term in query_terms]
        return sum(parts) if parts else None

    def rarities(self, query_terms: Iterable[str]) -> tuple[float, ...]:
        """-log of the share of each query term in the corpus, in nats; terms that it lacks are left out.

        Source: inverse collection term frequency (ICTF), Kwok, SIGIR 1996; as a predictor before retrieval, He and
        Ounis, "Inferring Query Performance Using Pre-retrieval Predictors", SPIRE 2004.
        """
        counts = (self.term_counts.get(term, 0) for term in query_terms)
        return tuple(math.log(self.tokens / count) for count in counts if count)

    def to_json(self) -> dict[str, Any]:
        counts = {"passages": self.passages, "tokens": self.tokens, "without_terms": self.without_terms}
        return {**counts, "digest": self.digest}

    @classmethod
    def from_json(cls, value: dict[str, Any], term_counts: dict[str, int]) -> "Collection":
        counts = value["passages"], value["tokens"], value.get("without_terms", 0)
        return cls(*counts, Counter(term_counts), int(value["digest"], 16))


def _digest(passage: Passage) -> int:
    text = json.dumps([passage.id, passage.title, passage.text], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")
