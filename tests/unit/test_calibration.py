"""Calibration with known answers: calibrated heads have no error, overconfident ones are tempered."""

import numpy as np
import pytest

from apportion.route.router.calibration import calibrate, expected_error, sigmoid, worth_of


def drawn(logits: np.ndarray, seed: int = 0) -> np.ndarray:
    """Worths of +1 or -1, needed with the probability that the logits say."""
    needed = np.random.default_rng(seed).random(len(logits)) < sigmoid(logits)
    return np.where(needed, 1.0, -1.0)


def test_a_calibrated_head_keeps_its_temperature() -> None:
    logits = np.random.default_rng(1).normal(0, 2, 20_000)
    found = calibrate("need_rag", logits, drawn(logits))
    assert found.temperature == pytest.approx(1.0, abs=0.15)
    assert found.ece < 0.02
    assert found.brier < found.brier_base


def test_an_overconfident_head_is_tempered() -> None:
    logits = np.random.default_rng(1).normal(0, 2, 20_000)
    found = calibrate("need_rag", 5 * logits, drawn(logits))
    assert found.temperature == pytest.approx(5.0, rel=0.15)
    assert found.ece < 0.02 < 0.1 < found.raw_ece


def test_stakes_count() -> None:
    """Nine small no and one large yes at the same probability: the yes weighs as much as its stake."""
    worth = np.array([9.0] + [-1.0] * 9)
    found = calibrate("need_cot", np.zeros(10), worth)
    assert found.base_rate == pytest.approx(0.5)
    assert found.counted_base_rate == pytest.approx(0.1)
    assert found.ece == pytest.approx(0.5)  # each bin is one question: |0.5 - 0 or 1|
    assert found.counted_brier == pytest.approx(0.25)


def test_error_by_hand() -> None:
    p, needed = np.array([0.2, 0.8]), np.array([False, True])
    assert expected_error(p, needed, np.array([0.5, 0.5])) == pytest.approx(0.2)


def test_worth_of_a_head_by_hand() -> None:
    utilities = np.array([[0.1, 0.5, 0.3, 0.9], [1.0, 0.2, 0.4, 0.3]])
    np.testing.assert_allclose(worth_of("need_rag", utilities), [0.6, -0.7])
    np.testing.assert_allclose(worth_of("need_cot", utilities), [0.4, -0.6])
    without_cot = utilities.copy()
    without_cot[:, 2:] = -np.inf
    assert worth_of("need_cot", without_cot) is None
    np.testing.assert_allclose(worth_of("need_rag", without_cot), [0.4, -0.8])
