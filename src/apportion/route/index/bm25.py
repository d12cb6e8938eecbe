"""Questions -> passages with scores, by BM25 on tantivy. Opens and searches; `indexing` writes.

A saved index is a folder: `manifest.json` (complete and current state, replaced atomically), and one folder
`bm25-N` that it names, with tantivy's files and `terms.json`, the term counts of the whole corpus.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from apportion.core.artifact import read_manifest
from apportion.core.errors import ArtifactCorruptError, ArtifactError, ArtifactMismatchError, InputError
from apportion.route.index.collection import Collection
from apportion.route.index.corpus import Passage
from apportion.route.index.terms import Analyzer

KIND = "apportion.index"
DEPTH = 100  # scores kept for the probes: the canonical NQC looks at the top 100
MAX_K = 1000
MAX_QUERY_TERMS = 256
OPEN_ATTEMPTS = 8
Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class Hits:
    """What one search found.

    Attributes:
        passages: the best k or fewer, best first; equal scores in the order of their ids.
        scores: scores of the best `depth` or fewer, falling; the first belong to `passages`. The retriever's
            own, never fused with another's.
        corpus_log_likelihood: log-likelihood of the query under the whole corpus in nats, where known.
        rarities: -log of each query term's share in the corpus in nats, where known; terms it lacks are left out.
        retriever: "bm25" or the name of the embedding model.
        query_terms_cut: query terms left out because a question had more than 256 distinct ones.
    """

    passages: tuple[Passage, ...]
    scores: tuple[float, ...]
    corpus_log_likelihood: float | None
    retriever: str
    query_terms_cut: int = 0
    rarities: tuple[float, ...] = ()


@runtime_checkable
class Retriever(Protocol):
    """Anything that finds passages; searches may run in several threads at once."""

    @property
    def corpus_digest(self) -> str: ...

    def search(self, question: str, k: int, *, depth: int = DEPTH) -> Hits:
        """The best k passages, and the best max(k, depth) scores."""
        ...


def check_k(k: int, depth: int) -> None:
    if not 1 <= k <= MAX_K:
        raise InputError(f"k {k}: expected 1 to {MAX_K} passages")
    if not 0 <= depth <= MAX_K:
        raise InputError(f"depth {depth}: expected 0 to {MAX_K} scores")


class Bm25Index:
    """An opened index: BM25 with k1 1.2 and b 0.75 over the terms of title and text (see `terms`).

    A question is a set of words, never query syntax: quotes, `NOT` or `field:` in it mean nothing.

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, as tantivy has it.
    """

    def __init__(self, tantivy_index: Any, collection: Collection) -> None:
        import tantivy

        self._tantivy = tantivy
        self._index = tantivy_index
        self._schema = tantivy_index.schema
        self._searcher = tantivy_index.searcher()
        self._analyzer = Analyzer()
        self.collection = collection

    @classmethod
    def open(cls, folder: Path) -> "Bm25Index":
        """Open a saved index.

        Args:
            folder: made by `build_index`.

        Raises:
            ArtifactError: no complete index there, another kind of folder, or a missing or changed file.
        Cost: its small files are read and checked; passages stay on disk.
        """

        def opened() -> Bm25Index:
            manifest = read_index_manifest(folder)
            index = cls._open_state(folder / manifest["state"], manifest["corpus"])
            _check_segments(folder, manifest)  # tantivy takes a file that went meanwhile for an empty one
            return index

        return while_it_changes(opened)

    @classmethod
    def _open_state(cls, state: Path, corpus: dict[str, Any]) -> "Bm25Index":
        terms = json.loads((state / "terms.json").read_text(encoding="utf-8"))
        collection = Collection.from_json(corpus, terms)
        if os.access(state, os.W_OK):
            return cls(open_tantivy(state), collection)
        with _temporary_folder(state) as links:  # what was opened stays open when they are gone
            for path in state.iterdir():
                if path.suffix != ".lock":
                    Path(links, path.name).symlink_to(path.absolute())
            return cls(open_tantivy(Path(links)), collection)

    @property
    def corpus_digest(self) -> str:
        return self.collection.digest

    def terms(self, text: str) -> list[str]:
        """The words of a text as the index holds them."""
        return self._analyzer.terms(text)

    def search(self, question: str, k: int, *, depth: int = DEPTH) -> Hits:
        """The best k passages for a question; fewer, or none, when fewer share a word with it.

        Args:
            question: any text. k: passages to return. depth: scores to return at least.

        Returns:
            Hits with passages by falling score; equal scores in the order of their ids.

        Raises:
            InputError: k or depth out of range.
        Cost: about a millisecond for 100,000 passages.

        >>> import tempfile
        >>> from apportion.route.index.build import build_index
        >>> folder = Path(tempfile.mkdtemp()) / "index"
        >>> index = build_index([Passage("1", "Bern", "the capital of Switzerland")], folder)
        >>> [passage.id for passage in index.search("What is Switzerland's capital?", 5).passages]
        ['1']
        """
        check_k(k, depth)
        every = list(dict.fromkeys(self.terms(question)))
        terms = every[:MAX_QUERY_TERMS]
        likelihood = self.collection.log_likelihood(terms)
        found = self._top(terms, max(k, depth))
        passages = sorted(
            ((score, self._passage(address)) for score, address in found[:k]),
            key=lambda pair: (-pair[0], pair[1].id),
        )
        return Hits(
            passages=tuple(passage for _, passage in passages),
            scores=tuple(score for score, _ in found),
            corpus_log_likelihood=likelihood,
            retriever="bm25",
            query_terms_cut=len(every) - len(terms),
            rarities=self.collection.rarities(terms),
        )

    def find(self, passage_id: str) -> Passage | None:
        """The passage of this id, if the corpus has it."""
        query = self._tantivy.Query.term_query(self._schema, "id", passage_id)
        hits = self._searcher.search(query, 1, count=False).hits
        return self._passage(hits[0][1]) if hits else None

    def passages(self) -> list[Passage]:
        """Every passage, in the order of ids."""
        if not self.collection.passages:
            return []
        everything = self._tantivy.Query.all_query()
        hits = self._searcher.search(everything, self.collection.passages, count=False).hits
        return sorted((self._passage(address) for _, address in hits), key=lambda passage: passage.id)

    def _top(self, terms: Sequence[str], limit: int) -> list[tuple[float, Any]]:
        if not terms or not self.collection.passages:
            return []
        query_type, should = self._tantivy.Query, self._tantivy.Occur.Should
        words = [(should, query_type.term_query(self._schema, "body", term)) for term in terms]
        return list(self._searcher.search(query_type.boolean_query(words), limit, count=False).hits)

    def _passage(self, address: Any) -> Passage:
        stored = self._searcher.doc(address)
        title, text = (bytes(stored.get_first(name)).decode() for name in ("title", "text"))
        return Passage(stored.get_first("id"), title, text)


def while_it_changes(open_once: Callable[[], Opened]) -> Opened:
    """What `open_once` opens; tried again where files went, since another process may just have replaced them."""
    for _ in range(OPEN_ATTEMPTS - 1):
        try:
            return open_once()
        except (ArtifactCorruptError, FileNotFoundError):
            time.sleep(0.02)
    return open_once()


def _temporary_folder(state: Path) -> "tempfile.TemporaryDirectory[str]":
    """For links to the files of a folder that cannot be written: tantivy locks beside what it opens.

    Raises:
        ArtifactError: no folder for temporary files can be written either.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="apportion-index-")
    except OSError as error:
        raise ArtifactError(
            f"{state}: cannot be written, nor can a temporary folder for its lock: {error}",
            "let TMPDIR name a folder that can be written",
        ) from error


def open_tantivy(state: Path) -> Any:
    import tantivy

    try:
        return tantivy.Index.open(str(state))
    except (ValueError, OSError) as error:
        raise ArtifactCorruptError(f"{state}: tantivy cannot open it: {error}", "index again") from error


def read_index_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete index, its small files checked by digest and its segments by size."""
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise ArtifactMismatchError(
            f"{folder}: is a folder of {manifest.get('kind')!r}, expected an index", "name an index folder"
        )
    _check_segments(folder, manifest)
    return manifest


def _check_segments(folder: Path, manifest: dict[str, Any]) -> None:
    for name, size in manifest["segments"].items():
        path = folder / manifest["state"] / name
        try:
            whole = path.stat().st_size == size
        except FileNotFoundError:
            whole = False
        if not whole:
            raise ArtifactCorruptError(f"{path}: is missing or has not its {size} bytes", "index again")
