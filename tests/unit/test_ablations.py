"""The ablations' shortcuts equal the program's own steps."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from apportion.bits.allocate import allocate
from apportion.bits.budget import Budget
from apportion.bits.optimum import assignment_at
from apportion.bits.sensitivity import estimate
from apportion.bits.spqe import draw_permutations

PLAYERS = 6


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "ablations.py"
    spec = importlib.util.spec_from_file_location("ablations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablations"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    values = random.normal(size=(2**PLAYERS, 8)).cumsum(0).astype(np.float32)
    path = tmp_path_factory.mktemp("values") / "values.npz"
    np.savez_compressed(path, values=values, settings=json.dumps({"rounding": "nearest"}), model="toy")
    return path


def test_looking_at_all_plans_equals_the_program(ablations: ModuleType, saved: Path) -> None:
    game = ablations.load(saved)
    sensitivity = estimate(game.samples(draw_permutations(PLAYERS, 20, 0)), "regression")
    for demoted, place in enumerate(game.plans(sensitivity).tolist(), start=1):
        budget = Budget(4 * PLAYERS - 2 * demoted, "test")
        own = assignment_at(place, PLAYERS, (2, 4))
        assert own.count(2) == demoted
        # the program may demote more than the budget asks for where that is predicted to help
        assert allocate(sensitivity, budget).predicted_nll <= sensitivity.predict(own) + 1e-9


def test_samples_are_the_values_along_the_permutations(ablations: ModuleType, saved: Path) -> None:
    game = ablations.load(saved)
    samples = game.samples(draw_permutations(PLAYERS, 3, 0), slice(2))
    assert samples.values[(4,) * PLAYERS].tolist() == game.values[0, :2].tolist()
    assert samples.values[(2,) * PLAYERS].tolist() == game.values[-1, :2].tolist()


def test_the_optimum_has_no_regret_where_it_was_chosen(ablations: ModuleType, saved: Path) -> None:
    game = ablations.load(saved)
    assert game.regret(ablations.best_places(game, slice(None))) == 0
    assert game.regret(ablations.best_places(game, slice(2)), slice(2, None)) >= 0


@pytest.mark.parametrize("name", ["permutations", "alpha", "calibration"])
def test_every_ablation_gives_finite_regrets(ablations: ModuleType, saved: Path, name: str) -> None:
    game = ablations.load(saved)
    rows = ablations.TABLES[name][1](game, 1)
    assert rows
    assert all(np.isfinite(item["mean"]) for row in rows for item in row.values() if isinstance(item, dict))
