"""Passages -> a saved BM25 index; later additions and deletions. Each change is all or nothing.

A change is made in a new folder `bm25-N+1` whose segment files are hard links to the old ones (tantivy never
rewrites a segment), then the manifest is replaced to name it, then the old folder is removed. A process that
dies on the way leaves the old state, and at most an unnamed folder that the next change removes.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from apportion.core.artifact import (
    MANIFEST,
    RUN,
    claim_folder,
    disk_error,
    kind_of,
    versions,
    write_json,
    write_manifest,
)
from apportion.core.errors import ArtifactExistsError, ArtifactMismatchError, InputError
from apportion.core.lines import Offenders
from apportion.core.lock import sole_writer
from apportion.route.index.bm25 import KIND, Bm25Index, open_tantivy, read_index_manifest
from apportion.route.index.collection import Collection, body
from apportion.route.index.corpus import Passage

HEAP_BYTES = 256 << 20
FIRST = "bm25-1"
MAX_ID_BYTES = 65_000  # longer ones the index keeps and never finds, so they would be there twice
TERMS = 2  # version of how text becomes terms; 1 left it to tantivy, which knows no script without blanks
_REWRITTEN = ("meta.json", ".managed.json", "terms.json")  # copied, where segments are linked


def build_index(passages: Iterable[Passage], folder: Path) -> Bm25Index:
    """Write a new index; passages are read one at a time and may be more than fit in memory.

    Args:
        passages: with ids of their own, for example from `read_corpus`.
        folder: does not exist yet, is empty, or holds what a build left that was killed.

    Returns:
        The index, opened. How many passages hold no term (and so are never found) is in its `collection`.

    Raises:
        ArtifactExistsError: the folder holds something. ArtifactError: another process writes to it.
        InputError: no passages, two of one id, or an id that is too long to be found.
    Cost: 100,000 passages of 60 words take about 5 s on one core.

    >>> import tempfile
    >>> from apportion.route.index import Passage
    >>> index = build_index([Passage("1", "Bern", "the capital")], Path(tempfile.mkdtemp()) / "index")
    >>> index.search("Which capital?", 1).passages[0].title
    'Bern'
    """
    if kind_of(folder) == KIND:
        raise ArtifactExistsError(f"--out {folder}: holds an index", "add to it with --add, or choose another --out")
    claim_folder(folder, resume=True, kind=KIND)
    with sole_writer(folder):
        shutil.rmtree(folder / FIRST, ignore_errors=True)  # of a build that was killed
        try:
            return _change(folder, FIRST, Collection(), _adding(passages))
        finally:
            (folder / RUN).unlink(missing_ok=True)  # whose a folder is, an index says by its manifest


def add_passages(folder: Path, passages: Iterable[Passage]) -> Bm25Index:
    """Add passages to a saved index; an id that it already has is refused, and nothing is added.

    Raises:
        InputError: an id occurs twice. ArtifactError: no index there, or another process writes to it.
    Cost: as `build_index` for the new passages; segments that are there are linked, not copied.
    """
    return _update(folder, _adding(passages))


def delete_passages(folder: Path, ids: Iterable[str]) -> Bm25Index:
    """Delete passages by id; an id that is not there is refused, and nothing is deleted.

    The corpus digest is then that of an index built without them. Scores may differ slightly from such an
    index until tantivy merges the segment, since its document frequencies still count what was deleted.

    Raises:
        InputError: an unknown id, or nothing would be left. ArtifactError: no index there, or it is being written to.
    """
    return _update(folder, _deleting(ids))


Work = Callable[[Bm25Index, Any], None]  # current index, tantivy writer


def _update(folder: Path, work: Work) -> Bm25Index:
    read_index_manifest(folder)  # an index, before it is locked
    with sole_writer(folder):
        return _update_locked(folder, work)


def _update_locked(folder: Path, work: Work) -> Bm25Index:
    manifest = read_index_manifest(folder)
    if manifest.get("terms") != TERMS:
        raise ArtifactMismatchError(
            f"{folder}: was made by an earlier version, which took terms out of text in another way",
            "index the corpus again; searching it as it is goes on working",
        )
    old = Bm25Index.open(folder)
    state = f"bm25-{int(manifest['state'].split('-')[1]) + 1}"
    target = folder / state
    shutil.rmtree(target, ignore_errors=True)
    try:
        target.mkdir()
        for name in (*_REWRITTEN, *manifest["segments"]):
            _link(folder / manifest["state"] / name, target / name)
    except OSError as error:
        raise disk_error(target, error) from error
    return _change(folder, state, old.collection, work)


def _link(source: Path, target: Path) -> None:
    if source.name in _REWRITTEN:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _change(folder: Path, state: str, collection: Collection, work: Work) -> Bm25Index:
    target = folder / state
    try:
        target.mkdir(exist_ok=True)
        fresh = not (target / "meta.json").exists()
        index = _create_tantivy(target) if fresh else open_tantivy(target)
        writer = index.writer(heap_size=HEAP_BYTES, num_threads=1)  # one thread: ties fall the same way
        try:
            work(Bm25Index(index, collection), writer)
            if not collection.passages:
                raise InputError(f"{folder}: the corpus is empty", "give at least one passage")
            writer.commit()
        finally:
            writer.wait_merging_threads()
        _publish(folder, state, collection)
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_error(target, error) from error
        if isinstance(error, ValueError) and "IO error" in str(error):  # tantivy's own, for example of a full disk
            raise disk_error(target, OSError(str(error))) from error
        raise
    return Bm25Index.open(folder)


def _publish(folder: Path, state: str, collection: Collection) -> None:
    target = folder / state
    write_json(target / "terms.json", dict(sorted(collection.term_counts.items())))
    small = [f"{state}/{name}" for name in ("meta.json", "terms.json")]
    segments = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if _is_segment(path)}
    content = {
        "kind": KIND,
        "retriever": "bm25",
        "state": state,
        "terms": TERMS,
        "corpus": collection.to_json(),
        "segments": segments,
        "versions": versions("tantivy"),
    }
    write_manifest(folder, content, small)
    for other in folder.glob("bm25-*"):
        if other.name != state:
            shutil.rmtree(other, ignore_errors=True)


def _is_segment(path: Path) -> bool:
    """Locks are not: a thread of tantivy's, which looks at `meta.json`, makes one at any time."""
    return path.name not in _REWRITTEN and path.suffix != ".lock"


def _create_tantivy(target: Path) -> Any:
    import tantivy

    schema = tantivy.SchemaBuilder()
    schema.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    schema.add_bytes_field("title", stored=True)
    schema.add_bytes_field("text", stored=True)
    schema.add_text_field("body", stored=False, tokenizer_name="whitespace", index_option="freq")
    return tantivy.Index(schema.build(), str(target))


def _adding(passages: Iterable[Passage]) -> Work:
    def add(current: Bm25Index, writer: Any) -> None:
        import tantivy

        taken = Offenders("corpus", "give each passage a short id of its own, or delete the old one first")
        seen: set[str] = set()
        not_empty = bool(current.collection.passages)
        for passage in passages:
            if len(passage.id.encode()) > MAX_ID_BYTES:
                taken.add(f"id {passage.id[:20]!r}...", f"is longer than {MAX_ID_BYTES} bytes")
                continue
            if passage.id in seen or (not_empty and current.find(passage.id)):
                taken.add(f"id {passage.id!r}", "is already in the index")
                continue
            seen.add(passage.id)
            terms = current.terms(body(passage))
            document = tantivy.Document(id=passage.id, body=" ".join(terms))  # the index splits at blanks only
            document.add_bytes("title", passage.title.encode())
            document.add_bytes("text", passage.text.encode())
            writer.add_document(document)
            current.collection.add(passage, terms)
        taken.raise_if_any()

    return add


def _deleting(ids: Iterable[str]) -> Work:
    def delete(current: Bm25Index, writer: Any) -> None:
        unknown = Offenders("delete", "name ids that the index has")
        for passage_id in dict.fromkeys(ids):
            passage = current.find(passage_id)
            if passage is None:
                unknown.add(f"id {passage_id!r}", "is not in the index")
                continue
            writer.delete_documents_by_term("id", passage_id)
            current.collection.remove(passage, current.terms(body(passage)))
        unknown.raise_if_any()

    return delete


def index_size_bytes(folder: Path) -> int:
    """Bytes of a saved index on disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
