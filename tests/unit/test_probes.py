"""Features against their formulas, and the registry against what is computed."""

import math
import statistics

import pytest

from apportion.route.ask.probes import (
    FEATURES,
    draft_features,
    nqc,
    question_features,
    rarity_features,
    retrieval_features,
    score_entropy,
)

SCORES = [9.0, 7.0, 6.5, 6.0, 5.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25]


def test_the_registry_is_exactly_what_is_computed() -> None:
    computed = {
        **retrieval_features(SCORES, -30.0),
        **rarity_features([3.0]),
        **question_features("Who is it?"),
        **draft_features([-0.1]),
    }
    assert computed.keys() == FEATURES.keys()
    assert all(name == feature.name and feature.description for name, feature in FEATURES.items())
    groups = {name: feature.group for name, feature in FEATURES.items()}
    assert {groups[name] for name in retrieval_features(SCORES, -30.0)} == {"retrieval"}
    assert {groups[name] for name in rarity_features([3.0])} == {"retrieval"}
    assert {groups[name] for name in draft_features([-0.1])} == {"draft"}
    assert {groups[name] for name in question_features("x")} == {"question"}


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
