"""A forest in numpy decides as the one that was fitted; it finds kinds of questions that no line separates."""

from dataclasses import replace

import numpy as np
import pytest

from apportion.core.seeds import stream
from apportion.route.router.forest import DEPTH, FEWEST, SHARE, TREES, Forest, fit_forest
from apportion.route.router.linear import outcomes
from apportion.route.router.policy import mean_outcome
from apportion.route.router.reader import Reader
from apportion.route.router.utility import Weights, cost, scale_of
from tests.synthetic_profiles import NAMES, needs_profile


def test_numpy_decides_as_scikit_learn_does() -> None:
    from sklearn.ensemble import RandomForestRegressor

    profile = needs_profile(150, seed=3)
    costed, reader = cost(profile, scale_of(profile)), Reader.of(profile, NAMES)
    read, asked = reader.read(profile), stream(0, "asked").normal(size=(300, len(NAMES)))
    forest = fit_forest(reader, read, costed, seed=7)
    model = RandomForestRegressor(
        TREES, max_depth=DEPTH, min_samples_leaf=FEWEST, max_features=SHARE, random_state=7
    ).fit(read, outcomes(costed).reshape(150, -1))
    said = model.predict(asked).reshape(300, 3, 4)
    weights = Weights(0.3, 0.1)
    expected = said[:, 0] - weights.token * said[:, 1] - weights.latency * said[:, 2]
    np.testing.assert_allclose(forest.scores(asked, weights), expected, atol=1e-9)


def test_an_exclusive_or_is_found() -> None:
    """Sign of the product of two features; a line through them predicts nothing."""
    profile = needs_profile(400, seed=1)
    features = stream(0, "two").normal(size=(400, 2))
    same = features[:, 0] * features[:, 1] > 0
    profile = replace(profile, features=features, feature_names=("question_words", "question_chars"))
    costed, reader = cost(profile, scale_of(profile)), Reader.of(profile, profile.feature_names)
    quality = np.where(same[:, None], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0])
    forest = fit_forest(reader, reader.read(profile), replace(costed, quality=quality), seed=0)
    chosen = forest.scores(reader.read(profile), Weights(0.0)).argmax(axis=1)
    assert (chosen == np.where(same, 1, 2)).mean() > 0.9


def test_a_tree_that_cannot_split_says_the_means() -> None:
    profile = needs_profile(2 * FEWEST - 1, seed=1)
    costed, reader = cost(profile, scale_of(profile)), Reader.of(profile, NAMES)
    leaves = fit_forest(reader, reader.read(profile), costed, seed=0).leaves
    assert np.ptp(leaves, axis=1).max() == 0
    np.testing.assert_allclose(leaves.mean(axis=(0, 1)), mean_outcome(costed), atol=0.15)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_strategy_that_was_not_recorded_is_never_chosen(rows: int) -> None:
    leaves = np.zeros((2, 2, 3, 4))
    leaves[:, 1, 0] = [1.0, 9.0, 2.0, 0.0]
    reader = Reader(("question_words",), np.zeros(1), np.ones(1))
    forest = Forest(reader, (0, 2), np.zeros((2, 1), dtype=np.int64), np.full((2, 1), 0.5), leaves)
    scores = forest.scores(np.ones((rows, 1)), Weights(0.0))
    assert scores.tolist() == [[1.0, -np.inf, 2.0, -np.inf]] * rows
