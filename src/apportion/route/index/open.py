"""A folder of passages -> what searches it, sparse or dense."""

from pathlib import Path

from apportion.route.index.bm25 import Bm25Index, Retriever


def open_retriever(folder: Path, dense: str | None = None) -> Retriever:
    """The retriever of an index.

    Args:
        folder: made by `apportion index`. dense: the embedding model of a dense index; None searches by BM25.

    Raises:
        ArtifactError: the folder holds no such index. MissingExtraError: a dense one without its package.

    >>> import tempfile
    >>> from apportion.route.index import Passage, build_index
    >>> folder = Path(tempfile.mkdtemp()) / "index"
    >>> built = build_index([Passage("1", "Bern", "the capital")], folder)
    >>> open_retriever(folder).search("Which capital?", 1).passages[0].title
    'Bern'
    """
    if dense is None:
        return Bm25Index.open(folder)
    from apportion.route.index.dense import DenseIndex, SentenceEncoder

    return DenseIndex.open(folder, SentenceEncoder(dense))
