"""An optional dense index beside the BM25 one: sentence embeddings in a float32 memory map, exact search.

Folder `dense` inside the index: `manifest.json`, `vectors.f32` [passages, dimensions] with rows of length 1,
and `ids.json` in the order of rows. It belongs to one corpus digest: after passages were added or deleted,
`sync_dense` embeds what is new and drops what is gone; until then opening it is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from apportion.core.arrays import NDArray
from apportion.core.artifact import (
    MANIFEST,
    read_manifest,
    sha256_bytes,
    versions,
    write_bytes,
    write_manifest,
)
from apportion.core.errors import ArtifactMismatchError, InputError, MissingExtraError, first_line
from apportion.core.progress import progress
from apportion.models.identity import model_identity
from apportion.route.index.bm25 import DEPTH, Bm25Index, Hits, check_k, while_it_changes
from apportion.route.index.collection import body
from apportion.route.index.corpus import Passage

KIND = "apportion.dense"
FOLDER = "dense"
BATCH = 256
Vectors = NDArray[np.float32]


@runtime_checkable
class Encoder(Protocol):
    """Texts -> vectors [texts, dimensions]; `name` identifies the model."""

    name: str

    def encode(self, texts: Sequence[str]) -> Vectors: ...


class SentenceEncoder:
    """A sentence-transformers model, by folder or name on the Hub.

    Raises:
        MissingExtraError: sentence-transformers is not installed. InputError: no such model.
    """

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError("sentence-transformers", "dense") from error
        folder = Path(model)
        self.name = f"{folder.name}@{model_identity(folder)}" if folder.is_dir() else model
        try:
            self._model = SentenceTransformer(model, device=device)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise InputError(
                f"--dense {model}: no embedding model there: {reason}", "name a folder or a Hub model"
            ) from error

    def encode(self, texts: Sequence[str]) -> Vectors:
        vectors = self._model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)


class DenseIndex:
    """An opened dense index; scores are cosines. Passages come from the BM25 index of the same folder.

    Cost of a search: one product of [passages, dimensions] and the question, 16 ms at 100,000 x 384.
    """

    def __init__(self, vectors: Vectors, ids: Sequence[str], store: Bm25Index, encoder: Encoder) -> None:
        self._vectors, self._ids, self._store, self._encoder = vectors, ids, store, encoder

    @classmethod
    def open(cls, folder: Path, encoder: Encoder) -> "DenseIndex":
        """Open the dense index of an index folder.

        Raises:
            ArtifactError: none there. ArtifactMismatchError: made with another encoder or of another corpus.
        """
        return while_it_changes(lambda: cls._open_once(folder, encoder))

    @classmethod
    def _open_once(cls, folder: Path, encoder: Encoder) -> "DenseIndex":
        store = Bm25Index.open(folder)
        manifest = read_manifest(folder / FOLDER)
        wanted = {"kind": KIND, "encoder": encoder.name, "corpus": store.corpus_digest}
        for key, value in wanted.items():
            if manifest.get(key) != value:
                raise ArtifactMismatchError(
                    f"{folder / FOLDER}: its {key} is {manifest.get(key)!r}, expected {value!r}",
                    "bring it up to date: apportion index --out DIR --dense MODEL",
                )
        ids = json.loads((folder / FOLDER / manifest["ids"]).read_text(encoding="utf-8"))
        shape = (len(ids), int(manifest["dimensions"]))
        return cls(
            np.memmap(folder / FOLDER / manifest["vectors"], np.float32, "r", shape=shape),
            ids,
            store,
            encoder,
        )

    @property
    def corpus_digest(self) -> str:
        return f"{self._store.corpus_digest}+{self._encoder.name}"

    def search(self, question: str, k: int, *, depth: int = DEPTH) -> Hits:
        """The nearest passages; equal scores in the order of ids."""
        check_k(k, depth)
        scores = self._vectors @ _unit(self._encoder.encode([question]))[0]  # [passages]
        wanted = min(max(k, depth), len(scores))
        best = np.argpartition(-scores, wanted - 1)[:wanted]
        best = best[np.lexsort((best, -scores[best]))]  # rows are in the order of ids
        found = [self._store.find(self._ids[row]) for row in best[:k]]
        return Hits(
            passages=tuple(passage for passage in found if passage is not None),
            scores=tuple(float(scores[row]) for row in best),
            corpus_log_likelihood=None,
            retriever=self._encoder.name,
        )


def sync_dense(folder: Path, encoder: Encoder) -> DenseIndex:
    """Make the dense index of an index folder, or bring it up to date: only new passages are embedded."""
    store = Bm25Index.open(folder)
    passages = store.passages()
    known = _saved_vectors(folder / FOLDER, encoder)
    keys = [sha256_bytes(f"{passage.id}\0{body(passage)}".encode()) for passage in passages]
    missing = [number for number, key in enumerate(keys) if key not in known]
    known.update(zip((keys[n] for n in missing), _embed([passages[n] for n in missing], encoder), strict=True))
    vectors = np.stack([known[key] for key in keys])
    target = folder / FOLDER
    state = store.corpus_digest[:16]
    names = {"vectors": f"vectors-{state}.f32", "ids": f"ids-{state}.json", "keys": f"keys-{state}.json"}
    write_bytes(target / names["vectors"], vectors.tobytes())
    _write_list(target / names["ids"], [passage.id for passage in passages])
    _write_list(target / names["keys"], keys)
    content: dict[str, Any] = {
        "kind": KIND,
        "encoder": encoder.name,
        "corpus": store.corpus_digest,
        "dimensions": int(vectors.shape[1]),
        **names,
        "versions": versions("sentence-transformers"),
    }
    write_manifest(target, content, names.values())
    for path in target.iterdir():
        if path.name not in (MANIFEST, *names.values()):
            path.unlink()
    return DenseIndex.open(folder, encoder)


def _write_list(path: Path, values: Sequence[str]) -> None:
    write_bytes(path, json.dumps(list(values), ensure_ascii=False).encode())


def _saved_vectors(folder: Path, encoder: Encoder) -> dict[str, Vectors]:
    """Vectors by passage digest of an earlier state made with the same encoder."""
    if not (folder / MANIFEST).exists():
        return {}
    manifest = read_manifest(folder)
    if manifest["encoder"] != encoder.name:
        return {}
    keys = json.loads((folder / manifest["keys"]).read_text(encoding="utf-8"))
    shape = (len(keys), int(manifest["dimensions"]))
    return dict(zip(keys, np.fromfile(folder / manifest["vectors"], np.float32).reshape(shape), strict=True))


def _embed(passages: Sequence[Passage], encoder: Encoder) -> list[Vectors]:
    rows: list[Vectors] = []
    with progress("embed", len(passages), "passages") as advance:
        for at in range(0, len(passages), BATCH):
            part = passages[at : at + BATCH]
            rows.extend(_unit(encoder.encode([body(passage) for passage in part])))
            advance(len(part))
    return rows


def _unit(vectors: Vectors) -> Vectors:
    """Rows of length 1; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
