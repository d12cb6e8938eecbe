"""A question that is asked again is no further evidence: one fold, one draw, one in errors, recognised by its text."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apportion.core.bootstrap import Bootstrap
from apportion.core.errors import InputError
from apportion.core.seeds import stream
from apportion.route.evaluation.evaluate import evaluate_router
from apportion.route.evaluation.field import EvaluationPlan
from apportion.route.evaluation.report import report
from apportion.route.profile.profile import Profile
from apportion.route.router.file import load_router, save_router
from apportion.route.router.folds import split_folds
from apportion.route.router.gate import gate_of, guard_of, mean_and_error
from apportion.route.router.plan import TrainingPlan
from apportion.route.router.router import BY_ROW
from apportion.route.router.train import train_router
from tests.golden.test_saved_router import FOLDER
from tests.synthetic_profiles import needs_profile

BRIEF = TrainingPlan(folds=2, seeds=1, steps=20, check_every=10)


def repeated(profile: Profile, times: int) -> Profile:
    """Every question so many times under ids of its own, in letters and blanks of its own."""
    rows = np.tile(np.arange(profile.n), times)
    asked = tuple(
        f" {text.upper()}  " if i // profile.n % 2 else text for i, text in enumerate(profile.question * times)
    )
    return replace(profile.select(rows), ids=tuple(map(str, range(len(rows)))), question=asked)


@pytest.mark.parametrize(("n", "folds", "seed"), [(40, 5, 0), (203, 4, 1), (61, 3, 7)])
def test_folds_of_different_questions_are_those_of_ever(n: int, folds: int, seed: int) -> None:
    names = tuple("abc"[i * i % 3] for i in range(n))
    order = stream(seed, "folds", folds).permutation(n)
    by_dataset = order[np.argsort(np.array(names)[order], kind="stable")]
    for groups in (None, np.arange(n)):
        for fold, rows in enumerate(split_folds(names, folds, seed, groups)):
            np.testing.assert_array_equal(rows, np.sort(by_dataset[fold::folds]))
            assert rows.dtype == np.int64


def test_a_question_that_repeats_is_in_one_fold_and_folds_stay_even() -> None:
    profile = repeated(needs_profile(60), 4)
    held = split_folds(profile.dataset, 3, 0, profile.groups)
    assert sorted(np.concatenate(held).tolist()) == list(range(240))
    asked = [set(profile.groups[rows].tolist()) for rows in held]
    assert sum(map(len, asked)) == profile.different == 60
    assert [len(rows) for rows in held] == [80, 80, 80]
    share = [np.mean([profile.dataset[row] == "sums" for row in rows]) for rows in held]
    assert max(share) - min(share) < 0.06
    with pytest.raises(InputError, match="folds 16 of 60 different questions"):
        split_folds(profile.dataset, 16, 0, profile.groups)


def test_repeats_narrow_no_interval_and_no_gate() -> None:
    values = np.random.default_rng(0).normal(size=60)
    once = Bootstrap(60, 0).interval(values)
    groups = np.tile(np.arange(60), 4)
    again = Bootstrap(240, 0, groups=groups).interval(np.tile(values, 4))
    assert (again.low, again.high) == (pytest.approx(once.low), pytest.approx(once.high))
    np.testing.assert_array_equal(Bootstrap(60, 0, groups=np.arange(60)).shares, Bootstrap(60, 0).shares)
    gains = np.random.default_rng(1).normal(size=(60, 13, 1))
    for kept in (slice(None), slice(1)):  # of several ways, and of one
        _, error = mean_and_error(np.stack([gains, -gains])[kept])
        _, of_four = mean_and_error(np.tile(np.stack([gains, -gains])[kept], (1, 4, 1, 1)), groups)
        np.testing.assert_allclose(of_four, error)
    np.testing.assert_allclose(gate_of(np.tile(gains, (4, 1, 1)), 1.0, groups).error, gate_of(gains, 1.0).error)
    held = [np.flatnonzero(groups % 3 == fold) for fold in range(3)]
    first = [rows[rows < 60] for rows in held]
    many, few = guard_of([np.tile(gains, (4, 1, 1))], held, 1.0, groups), guard_of([gains], first, 1.0)
    np.testing.assert_allclose(many.error, few.error)
    assert np.isinf(mean_and_error(gains[:4], np.zeros(4, dtype=np.int64))[1]).all()


def test_learning_answers_by_heart_is_not_said_to_gain() -> None:
    """Outcomes are luck, but the same for the same question: rows of it in training would tell them."""
    profile = repeated(needs_profile(30, seed=3, signal=0.0, noise=0.5), 8)
    plan = EvaluationPlan(
        folds=3, token_weights=(0.0, 0.1), latency_weights=(0.0,), ablations=False, leave_out=False, training=BRIEF
    )
    found = evaluate_router(profile, plan)
    assert found.repeated_texts == 210
    assert "equal texts in one fold" in found.protocol["split"]
    assert "210 of the 240 questions repeat the text of another" in report(found)
    assert found.summary.beaten == 0
    for row in found.weights:
        assert row.baselines["knn"].utility < row.best_static.utility, "neighbours are other questions"
    plain = evaluate_router(needs_profile(60, seed=3), replace(plan, folds=2))
    assert plain.repeated_texts == 0
    assert "equal texts" not in plain.protocol["split"] + report(plain)


def test_training_says_how_many_texts_repeat() -> None:
    assert train_router(repeated(needs_profile(20), 2), BRIEF).repeated_texts == 20
    assert train_router(needs_profile(20), BRIEF).repeated_texts == 0


def elsewhere(profile: Profile) -> Profile:
    """The same questions as another file has them: another data set, other ids, another case."""
    asked = tuple(text.upper() for text in profile.question)
    return replace(profile, dataset=("b",) * profile.n, ids=tuple(f"b{i}" for i in profile.ids), question=asked)


def test_training_questions_are_recognised_in_another_file(tmp_path: Path) -> None:
    learned, other = needs_profile(40, seed=1), needs_profile(30, seed=2)
    save_router(tmp_path / "router", train_router(learned, BRIEF).router, {})
    router, plan = load_router(tmp_path / "router"), EvaluationPlan(ablations=False, leave_out=False, training=BRIEF)
    again = elsewhere(learned)
    assert evaluate_router(again, plan, router=router).trained_on_these == 40
    assert evaluate_router(again, plan, train=learned).trained_on_these == 40
    assert evaluate_router(again.select(np.arange(30)), plan, train=other, router=router).trained_on_these == 30
    assert evaluate_router(elsewhere(other), plan, router=router).trained_on_these == 0
    bare = replace(again, question=("",) * 40)
    assert not router.has_seen(bare).any(), "without texts nothing is alike"
    assert len(set(bare.text_keys().tolist())) == 40


def test_a_router_of_an_earlier_version_knows_its_rows_and_says_no_more(tmp_path: Path) -> None:
    router, rows = load_router(FOLDER), needs_profile(300, seed=1)
    assert router.keyed_by == BY_ROW
    assert router.has_seen(rows).all()
    found = evaluate_router(elsewhere(rows.select(np.arange(40))), router=router)
    assert found.trained_on_these == 0
    assert any("by their text: the router is of an earlier version" in one for one in found.dropped)
    save_router(tmp_path / "again", router, {})
    assert load_router(tmp_path / "again").has_seen(rows).all()


def test_a_family_left_out_is_left_out_under_other_names_too() -> None:
    """Every question is in both families: nothing is left to train on, rather than the same questions."""
    profile = needs_profile(40, seed=1)
    both = repeated(profile, 2)
    both = replace(both, dataset=("a",) * 40 + ("b",) * 40)
    plan = EvaluationPlan(token_weights=(0.1,), latency_weights=(0.0,), ablations=False, training=BRIEF)
    found = evaluate_router(both, replace(plan, folds=2), train=both)
    assert not found.left_out
    assert sum("leave-one-family-out of" in one for one in found.dropped) == 2
