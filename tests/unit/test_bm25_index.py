"""The saved BM25 index: searches, changes that are all or nothing, and damage that is noticed."""

import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from apportion.core.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactExistsError,
    ArtifactMismatchError,
    InputError,
)
from apportion.core.lock import sole_writer
from apportion.route.index import bm25
from apportion.route.index.bm25 import MAX_QUERY_TERMS, Bm25Index
from apportion.route.index.build import add_passages, build_index, delete_passages
from apportion.route.index.corpus import Passage

CAPITALS = [
    Passage("ch", "Bern", "The capital of Switzerland."),
    Passage("fr", "Paris", "The capital of France, on the Seine."),
    Passage("jp", "Tokyo", "The capital of Japan; large."),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_index(CAPITALS, tmp_path / "index")
    return tmp_path / "index"


def ids(index: Bm25Index, question: str, k: int = 5) -> list[str]:
    return [passage.id for passage in index.search(question, k).passages]


def test_the_best_passage_comes_first_and_scores_fall(folder: Path) -> None:
    hits = Bm25Index.open(folder).search("What is the capital on the Seine?", 2)
    assert hits.passages[0] == CAPITALS[1]
    assert len(hits.passages) == 2
    assert len(hits.scores) == 3
    assert list(hits.scores) == sorted(hits.scores, reverse=True)
    assert hits.retriever == "bm25"


def test_words_are_stemmed_and_titles_are_searched(folder: Path) -> None:
    index = Bm25Index.open(folder)
    assert sorted(ids(index, "capitals", 9)) == ["ch", "fr", "jp"]
    assert ids(index, "TOKYO") == ["jp"]


def test_equal_scores_come_in_the_order_of_ids(tmp_path: Path) -> None:
    twins = [Passage(name, "", "same words") for name in ("b", "a", "c")]
    assert ids(build_index(twins, tmp_path / "i"), "words") == ["a", "b", "c"]


def test_k_beyond_the_corpus_and_no_hit_at_all(folder: Path) -> None:
    index = Bm25Index.open(folder)
    assert len(index.search("capital", 1000).passages) == 3
    for question in ("zebra", "", "  ?!", "\ud800"):
        hits = index.search(question, 5)
        assert hits.passages == hits.scores == ()
    assert index.search("", 5).corpus_log_likelihood is None


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_k_out_of_range_is_refused(folder: Path, k: int) -> None:
    with pytest.raises(InputError, match="expected 1 to 1000"):
        Bm25Index.open(folder).search("capital", k)


def test_a_question_is_words_and_never_query_syntax(folder: Path) -> None:
    index = Bm25Index.open(folder)
    assert ids(index, 'id:ch title:"x" AND (Tokyo') == ["jp"]
    assert ids(index, "-Tokyo NOT") == ["jp"]


def test_very_long_questions_are_cut_and_say_so(folder: Path) -> None:
    hits = Bm25Index.open(folder).search("capital " + " ".join(f"w{n}" for n in range(5000)), 1)
    assert hits.query_terms_cut == 5001 - MAX_QUERY_TERMS
    assert hits.passages


def test_likelihood_of_the_query_under_the_corpus(folder: Path) -> None:
    index = Bm25Index.open(folder)
    stats = index.collection
    scale = stats.tokens + 0.5 * (len(stats.term_counts) + 1)
    expected = math.log(3.5 / scale) + math.log(0.5 / scale)
    assert index.search("capital zebra", 1).corpus_log_likelihood == pytest.approx(expected)


def test_rarity_of_the_query_terms_in_the_corpus(folder: Path) -> None:
    index = Bm25Index.open(folder)
    assert index.search("capital zebra", 1).rarities == (pytest.approx(math.log(index.collection.tokens / 3)),)
    assert index.search("zebra", 1).rarities == ()


def test_adding_and_deleting_restores_digest_and_statistics(folder: Path) -> None:
    before = Bm25Index.open(folder)
    added = add_passages(folder, [Passage("it", "Rome", "The capital of Italy.")])
    assert ids(added, "Rome") == ["it"]
    assert added.corpus_digest != before.corpus_digest
    after = delete_passages(folder, ["it"])
    assert after.collection == before.collection
    assert ids(after, "Rome") == []
    assert ids(before, "Rome") == []  # an index that was open keeps its own state


def test_the_digest_does_not_depend_on_the_order(tmp_path: Path, folder: Path) -> None:
    other = build_index(reversed(CAPITALS), tmp_path / "other")
    assert other.corpus_digest == Bm25Index.open(folder).corpus_digest


def test_refused_changes_change_nothing(folder: Path) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(InputError, match="id 'ch': is already in the index"):
        add_passages(folder, [Passage("new", "", "new words"), CAPITALS[0]])
    with pytest.raises(InputError, match="'nope': is not in the index"):
        delete_passages(folder, ["fr", "nope"])
    with pytest.raises(InputError, match="corpus is empty"):
        delete_passages(folder, ["ch", "fr", "jp"])
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert ids(Bm25Index.open(folder), "new France") == ["fr"]


def test_a_change_that_dies_leaves_the_old_state(folder: Path) -> None:
    def dying() -> Iterator[Passage]:
        yield Passage("new", "", "brand new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_passages(folder, dying())
    assert ids(Bm25Index.open(folder), "brand") == []
    # a kill leaves the folder of the unfinished state behind; the next change removes it
    shutil.copytree(folder / "bm25-1", folder / "bm25-2")
    assert ids(add_passages(folder, [Passage("new", "", "brand new")]), "brand") == ["new"]
    assert sorted(path.name for path in folder.iterdir()) == ["bm25-2", "manifest.json"]


def test_two_processes_may_not_change_one_index(folder: Path) -> None:
    with sole_writer(folder), pytest.raises(ArtifactError, match="written by another process"):
        delete_passages(folder, ["fr"])
    assert ids(delete_passages(folder, ["fr"]), "France") == []


def test_searching_goes_on_while_the_index_changes(folder: Path) -> None:
    enough = threading.Event()

    def change() -> None:
        for number in range(500):
            add_passages(folder, [Passage(f"n{number}", "", f"word{number}")])
            if number >= 14 and enough.is_set():
                return

    with ThreadPoolExecutor(2) as threads:
        changing = threads.submit(change)
        opened = 0
        while not changing.done():
            assert "jp" in ids(Bm25Index.open(folder), "Japan")
            opened += 1
            if opened > 3:
                enough.set()
        changing.result()
    assert enough.is_set()
    assert ids(Bm25Index.open(folder), "word14") == ["n14"]


def test_a_file_that_goes_while_it_is_opened_is_not_taken_for_an_empty_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tantivy opens a segment without its positions; only the first search would have failed."""
    opening, (positions,) = bm25.open_tantivy, folder.rglob("*.pos")
    content, attempts = positions.read_bytes(), []

    def once_without_it(state: Path) -> Any:
        attempts.append(state)
        if len(attempts) > 1:
            return opening(state)
        positions.unlink()
        index = opening(state)
        monkeypatch.setattr(bm25.time, "sleep", lambda _: positions.write_bytes(content))
        return index

    monkeypatch.setattr(bm25, "open_tantivy", once_without_it)
    assert "jp" in ids(Bm25Index.open(folder), "Japan")
    assert len(attempts) == 2


def test_a_folder_that_cannot_be_written_is_searched_by_links(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containers and services mount it; tests may run as root, whom no mode stops, so the system's word is given."""
    mounted = tmp_path / "mounted"  # a copy: a thread of the index that was built may still lock beside its own files
    shutil.copytree(folder, mounted, ignore=shutil.ignore_patterns("*.lock"))
    before = {path: path.read_bytes() for path in mounted.rglob("*") if path.is_file()}
    monkeypatch.setattr(bm25.os, "access", lambda path, mode: False)
    monkeypatch.setattr(bm25.tempfile, "tempdir", str(tmp_path))
    index = Bm25Index.open(mounted)
    assert not list(tmp_path.glob("apportion-index-*"))
    assert ids(index, "Japan") == ["jp"]
    assert index.passages() == sorted(CAPITALS, key=lambda one: one.id)
    assert {path: path.read_bytes() for path in mounted.rglob("*") if path.is_file()} == before, "nothing was written"
    monkeypatch.setattr(bm25.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ArtifactError, match="nor can a temporary folder"):
        Bm25Index.open(mounted)


def test_the_manifest_names_no_lock(folder: Path) -> None:
    """They come and go as tantivy's threads like: one that is named would be missed in a copy without it."""
    locks = [path.name for path in folder.rglob("*.lock")]
    assert locks
    assert not set(locks) & set(json.loads((folder / "manifest.json").read_text())["segments"])
    for lock in folder.rglob("*.lock"):
        lock.unlink()
    assert ids(add_passages(folder, [Passage("it", "Rome", "")]), "Rome") == ["it"]


def test_building_needs_an_empty_folder_and_a_passage(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArtifactExistsError, match="holds an index") as held:
        build_index(CAPITALS, folder)
    assert "--add" in str(held.value)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactExistsError, match="did not put there"):
        build_index(CAPITALS, tmp_path / "mine")
    with pytest.raises(InputError, match="corpus is empty"):
        build_index([], tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        Bm25Index.open(tmp_path / "none")


def test_a_build_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    """Killed, a process removes nothing: neither what it wrote nor the mark that it was its own."""
    killed = """
import os, sys
from pathlib import Path
from apportion.route.index import Passage, build_index

def passages():
    yield Passage("old", "Turin", "the first capital")
    os._exit(9)

build_index(passages(), Path(sys.argv[1]))
"""
    path = tmp_path / "index"
    assert subprocess.run([sys.executable, "-c", killed, str(path)], check=False, timeout=60).returncode == 9
    assert (path / "bm25-1").is_dir()
    index = build_index(CAPITALS, path)
    assert index.collection.passages == len(CAPITALS)
    assert index.find("old") is None
    assert sorted(one.name for one in path.iterdir()) == ["bm25-1", "manifest.json"]


def test_a_build_that_failed_leaves_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="corpus is empty"):
        build_index([], tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []


def test_an_id_too_long_to_be_found_is_refused(tmp_path: Path, folder: Path) -> None:
    long = Passage("x" * 70_000, "Rome", "")
    for change in (lambda: build_index([long], tmp_path / "other"), lambda: add_passages(folder, [long])):
        with pytest.raises(InputError, match="longer than 65000 bytes"):
            change()


def test_damage_is_noticed(tmp_path: Path, folder: Path) -> None:
    state = folder / "bm25-1"
    for number, name in enumerate(("meta.json", "terms.json", next(state.glob("*.store")).name)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        (copy / "bm25-1" / name).write_bytes((state / name).read_bytes()[:-1])
        with pytest.raises(ArtifactCorruptError, match=name):
            Bm25Index.open(copy)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "kind": "apportion.router"}))
    with pytest.raises(ArtifactMismatchError, match="expected an index"):
        Bm25Index.open(folder)


def test_searches_in_many_threads_agree(folder: Path) -> None:
    index = Bm25Index.open(folder)
    questions = ["capital of Japan", "Seine", "Switzerland large"] * 50
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda question: index.search(question, 3), questions))
    assert found == [index.search(question, 3) for question in questions]


def test_every_passage_can_be_read_back(folder: Path) -> None:
    index = Bm25Index.open(folder)
    assert index.passages() == CAPITALS
    assert index.find("jp") == CAPITALS[2]
    assert index.find("xx") is None


UNSPACED = [
    Passage("zh", "伯尔尼", "伯尔尼是瑞士的首都。"),
    Passage("ja", "東京", "東京は日本の首都です。"),
    Passage("th", "กรุงเทพ", "กรุงเทพเป็นเมืองหลวงของประเทศไทย"),
    Passage("ko", "서울", "서울은 대한민국의 수도이다."),
    Passage("en", "Bern", "Bern is the capital of Switzerland."),
    Passage("none", "", "?!... --"),
]


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("瑞士的首都是哪里", "zh"),
        ("日本の首都はどこですか", "ja"),
        ("เมืองหลวงของประเทศไทยคืออะไร", "th"),
        ("대한민국 수도", "ko"),
        ("Switzerland 的 capital", "en"),
    ],
)
def test_scripts_without_blanks_are_found(tmp_path: Path, question: str, best: str) -> None:
    index = build_index(UNSPACED, tmp_path / "index")
    assert index.search(question, 1).passages[0].id == best


def test_passages_without_terms_are_counted_and_come_and_go(tmp_path: Path) -> None:
    index = build_index(UNSPACED, tmp_path / "index")
    assert index.collection.without_terms == Bm25Index.open(tmp_path / "index").collection.without_terms == 1
    assert delete_passages(tmp_path / "index", ["none"]).collection.without_terms == 0
    assert index.search("?", 3).passages == index.search("", 3).passages == ()


def test_an_index_of_an_earlier_version_is_searched_but_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(UNSPACED, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["terms"], manifest["corpus"]["without_terms"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Bm25Index.open(folder).search("capital", 1).passages[0].id == "en"
    with pytest.raises(ArtifactMismatchError, match="made by an earlier version"):
        add_passages(folder, [Passage("new", "", "text")])


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    def passages() -> Iterator[Passage]:
        yield CAPITALS[0]
        raise ValueError("An IO error occurred: 'No space left on device (os error 28)'")

    with pytest.raises(ArtifactError, match=r"cannot be written: .*No space left"):
        build_index(passages(), tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []
