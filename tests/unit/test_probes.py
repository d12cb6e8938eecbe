"""Features against their formulas, and the registry against what is computed."""

import math
import statistics

import pytest

from apportion.route.ask.evidence import answer_features, passage_features
from apportion.route.ask.features import FEATURES, group_of, needs_of
from apportion.route.ask.probes import (
    draft_features,
    nqc,
    question_features,
    rarity_features,
    retrieval_features,
    retrieved_features,
    score_entropy,
)
from apportion.route.index.corpus import Passage

SCORES = [9.0, 7.0, 6.5, 6.0, 5.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25]


def test_the_registry_is_exactly_what_is_computed() -> None:
    passages = [Passage("1", "Ada", "it is")]
    asked = "Who is Ada Lovelace?"
    computed = {
        **retrieval_features(SCORES, -30.0),
        **rarity_features([3.0]),
        **passage_features(asked, passages),
        **question_features(asked),
        **draft_features([-0.1], 0.5),
        **answer_features("draft", "Ada", asked, passages),
        **retrieved_features([-0.1], 0.5),
        **answer_features("rag", "Ada", asked, passages),
    }
    assert computed.keys() == FEATURES.keys()
    assert all(name == one.name and one.description and one.source for name, one in FEATURES.items())


def test_a_feature_says_what_must_be_done_before_it_is_known() -> None:
    assert {group_of(name) for name in retrieval_features(SCORES, -30.0)} == {"retrieval"}
    assert {group_of(name) for name in rarity_features([3.0])} == {"retrieval"}
    assert {group_of(name) for name in draft_features([-0.1])} == {"draft"}
    assert {group_of(name) for name in question_features("x")} == {"question"}
    assert {group_of(name) for name in retrieved_features([-0.1])} == {"answer"}
    assert needs_of(["draft_in_passages"]).search
    assert not needs_of(["draft_abstains", "question_words"]).search
    assert group_of("question_of_mine") == "question"


def test_nqc_variants_by_hand() -> None:
    found = retrieval_features(SCORES, -30.0)
    spread = statistics.pstdev(SCORES[:10])
    assert found["nqc_top1_k10"] == pytest.approx(spread / 9.0)
    assert found["nqc_mean_k10"] == pytest.approx(spread / statistics.mean(SCORES[:10]))
    assert found["nqc_canonical_k100"] == pytest.approx(statistics.pstdev(SCORES) / 30.0)
    assert (found["score_top"], found["score_gap"], found["hits"]) == (9.0, 2.0, 10.0)


def test_what_cannot_be_computed_is_missing() -> None:
    assert retrieval_features([]) == {"hits": 0.0}
    assert retrieval_features([2.0]) == {
        "hits": 1.0,
        "score_top": 2.0,
        "score_mean": 2.0,
        "score_entropy": 0.0,
    }
    assert "nqc_canonical_k100" not in retrieval_features(SCORES)
    assert "score_entropy" not in retrieval_features([0.5, -0.1])  # cosines may be negative
    assert draft_features(None) == draft_features([]) == {}
    assert nqc([1.0, 0.0], 0.0, 10) is None


def test_entropy_of_equal_scores_is_the_logarithm_of_their_number() -> None:
    assert score_entropy([2.0] * 7) == pytest.approx(math.log(7))


def test_question_features_by_hand() -> None:
    found = question_features('Did "Ada Lovelace" earn 1,000.50 or 12 pounds?')
    assert found["question_words"] == 8
    assert found["question_numbers"] == 2
    assert found["question_capitals"] == 2
    assert question_features("")["question_words"] == 0


def test_draft_features_by_hand() -> None:
    found = draft_features([-0.5, -2.0, -0.2])
    assert found["draft_nll_mean"] == pytest.approx(0.9)
    assert (found["draft_nll_first"], found["draft_nll_max"], found["draft_tokens"]) == (0.5, 2.0, 3.0)
    assert found["draft_nll_sum"] == pytest.approx(2.7)
    assert retrieved_features([-0.5, -2.0, -0.2])["rag_nll_sum"] == pytest.approx(2.7)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Is Bern in Switzerland?", "question_polar"),
        ("Who was born first, Ada or Charles?", "question_compares"),
        ("How many legs has a spider?", "question_counts"),
        ("Who wrote Emma?", "question_person"),
        ("What year did it end?", "question_time"),
        ("Where is Bern?", "question_place"),
    ],
)
def test_the_kind_of_a_question_is_told_from_its_words(question: str, kind: str) -> None:
    assert question_features(question)[kind] == 1.0
    assert question_features("Name the river.")[kind] == 0.0


def test_equal_questions_have_equal_hashed_words_and_others_differ() -> None:
    one, same, other = (question_features(text) for text in ("Who rules Bern?", "who RULES bern", "Who rules Rome?"))
    hashed = [name for name in one if name.startswith("question_hash_")]
    assert len(hashed) == 64
    assert [one[name] for name in hashed] == [same[name] for name in hashed]
    assert [one[name] for name in hashed] != [other[name] for name in hashed]


def test_an_answer_is_sought_in_the_passages_as_whole_words() -> None:
    passages = [Passage("1", "", "The capital is Bern, not Berne.")]

    def said(answer: str) -> dict[str, float]:
        return answer_features("rag", answer, "What is the capital?", passages)

    assert said("bern")["rag_in_passages"] == 1.0
    assert said("Ber")["rag_in_passages"] == 0.0
    assert said("The capital is not mentioned.")["rag_abstains"] == 1.0
    assert said("capital")["rag_in_question"] == 1.0
    assert said("")["rag_abstains"] == 1.0
    assert "draft_in_passages" not in answer_features("draft", "bern", "What?", [])
