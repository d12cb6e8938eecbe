"""Passages and how they are found: corpora on disk, BM25 and dense indexes.

Offered: reading a corpus, making, changing and opening an index, and what a search gives; the rest is this
package's own.
"""

from apportion.route.index.bm25 import Bm25Index, Hits, Retriever, check_k
from apportion.route.index.build import add_passages, build_index, delete_passages, index_size_bytes
from apportion.route.index.corpus import Passage, read_corpus
from apportion.route.index.open import open_retriever

__all__ = [
    "Bm25Index",
    "Hits",
    "Passage",
    "Retriever",
    "add_passages",
    "build_index",
    "check_k",
    "delete_passages",
    "index_size_bytes",
    "open_retriever",
    "read_corpus",
]
