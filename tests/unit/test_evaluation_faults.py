"""What goes wrong in an evaluation: refused before it works, or told and survived."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apportion.core.artifact import plain
from apportion.core.errors import InputError, NumericError
from apportion.route.evaluation import EvaluationPlan, Parts, evaluate, evaluate_router  # evaluate: the module
from apportion.route.evaluation.field import Fitted, fit_field
from apportion.route.evaluation.report import report
from apportion.route.profile.profile import Profile
from apportion.route.router import TrainingPlan
from tests.synthetic_profiles import needs_profile

BRIEF = TrainingPlan(folds=2, seeds=1, steps=20, check_every=10, batch=32)
PLAN = EvaluationPlan(folds=3, token_weights=(0.3,), latency_weights=(0.0,), ablations=False, leave_out=False)
SMALL = replace(PLAN, training=BRIEF)


def failing_at(number: int, counted: list[int]):  # type: ignore[no-untyped-def]
    """`fit_field`, but that the split of this number cannot be fitted; counts its calls."""

    def fit(*given: object, **more: object) -> Fitted:
        counted.append(len(counted))
        if counted[-1] == number:
            raise NumericError("a loss is not finite")
        return fit_field(*given, **more)  # type: ignore[arg-type]

    return fit


def test_twelve_questions_are_refused_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(evaluate, "fit_field", failing_at(-1, counted))
    plan = EvaluationPlan(folds=3)
    with pytest.raises(InputError, match="each of 3 folds: leaves 8 questions to train on, and training needs 20"):
        evaluate_router(needs_profile(12), plan)
    with pytest.raises(InputError, match="--train: leaves 10 questions"):
        evaluate_router(needs_profile(30), plan, train=needs_profile(10, seed=1))
    with pytest.raises(InputError, match="--repeat: lacks 30 of 30"):
        evaluate_router(needs_profile(30), SMALL, repeat=needs_profile(30, seed=9))
    assert counted == []


def test_a_fold_that_fails_costs_only_its_own_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "fit_field", failing_at(1, []))
    found = evaluate_router(needs_profile(36), SMALL)
    assert found.questions == 24
    assert found.failed == ("fold 2 of 3 (12 questions): a loss is not finite",)
    assert "Not judged, since they could not be fitted: fold 2 of 3" in report(found)


def test_when_every_fold_fails_there_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **more: object) -> Fitted:
        raise NumericError("a loss is not finite")

    monkeypatch.setattr(evaluate, "fit_field", broken)
    with pytest.raises(InputError, match="every fold failed: fold 1 of 3"):
        evaluate_router(needs_profile(36), SMALL)


def test_finished_splits_are_not_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile: Profile = needs_profile(36)
    whole = evaluate_router(profile, SMALL)
    monkeypatch.setattr(evaluate, "fit_field", failing_at(2, []))
    evaluate_router(profile, SMALL, parts=Parts(tmp_path / "splits"))
    counted: list[int] = []
    monkeypatch.setattr(evaluate, "fit_field", failing_at(-1, counted))
    parts = Parts(tmp_path / "splits")
    resumed = evaluate_router(profile, SMALL, parts=parts)
    assert len(counted) == 1
    assert resumed.weights == whole.weights
    assert plain(resumed.calibration) == plain(whole.calibration)
    parts.clear()
    assert not (tmp_path / "splits").exists()


def test_a_split_of_other_questions_is_fitted_anew(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    evaluate_router(needs_profile(36), SMALL, parts=parts)
    assert parts.load(0, np.arange(5)) is None
