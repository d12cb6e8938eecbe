"""The ablations' shortcuts equal the program's own steps."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from apportion.bits.compare.optimum import assignment_at
from apportion.bits.game.spqe import draw_permutations
from apportion.bits.plan import Budget, allocate, estimate

PLAYERS = 6


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    return importlib.import_module("ablations")


def make_values(path: Path, *, players: int, windows: int, rounding: str) -> Path:
    """What `gpu_compare.py` saves, of a game of costs, interactions and windows that differ."""
    random = np.random.default_rng(len(rounding))
    low = (np.arange(2**players)[:, None] >> np.arange(players)[::-1]) & 1
    costs = np.random.default_rng(0).gamma(1.5, 0.03, players) * np.exp(0.2 * random.normal(size=players))
    pair = np.triu(0.004 * random.normal(size=(players, players)), 1)
    values = 3.7 + (low * costs) @ np.exp(0.3 * random.normal(size=(players, windows)))
    values += ((low @ pair) * low).sum(1, keepdims=True)
    settings = json.dumps({"rounding": rounding, "calibration": "digest"})
    np.savez_compressed(path, values=values.astype(np.float32), settings=settings, model="toy")
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    return make_values(folder / "values.npz", players=PLAYERS, windows=8, rounding="nearest")


def test_looking_at_all_plans_equals_the_program(ablations: ModuleType, saved: Path) -> None:
    game = ablations.load(saved)
    sensitivity = estimate(game.samples(draw_permutations(PLAYERS, 20, 0)), "regression")
    for demoted, place in enumerate(game.plans(sensitivity).tolist(), start=1):
        budget = Budget(4 * PLAYERS - 2 * demoted, "test")
        own = assignment_at(place, PLAYERS)
        assert own.count(0) == demoted
        # the program may demote more than the budget asks for where that is predicted to help
        assert allocate(sensitivity, budget).predicted_nll <= sensitivity.predict(own) + 1e-9


def test_samples_are_the_values_along_the_permutations(ablations: ModuleType, saved: Path) -> None:
    game = ablations.load(saved)
    samples = game.samples(draw_permutations(PLAYERS, 3, 0), slice(2))
    assert samples.values[(1,) * PLAYERS].tolist() == game.values[0, :2].tolist()
    assert samples.values[(0,) * PLAYERS].tolist() == game.values[-1, :2].tolist()


def test_the_optimum_has_no_regret_where_it_was_chosen(ablations: ModuleType, saved: Path) -> None:
    game = ablations.load(saved)
    assert game.regret(ablations.best_places(game, slice(None))) == 0
    assert game.regret(ablations.best_places(game, slice(2)), slice(2, None)) >= 0


def test_methods_that_measure_give_what_the_program_gives(ablations: ModuleType, saved: Path) -> None:
    game = ablations.load(saved)
    orders, means = draw_permutations(PLAYERS, 1, 0), game.values.mean(1)
    alone = means[[1 << (PLAYERS - 1 - player) for player in range(PLAYERS)]] - means[0]
    for demoted, place in enumerate(game.places("one-at-a-time", orders).tolist(), start=1):
        assert game.low[place].sum() == demoted
        assert alone[game.low[place]].sum() == pytest.approx(np.sort(alone)[:demoted].sum())
    place = 0
    for found in game.places("greedy", orders).tolist():
        steps = [place | 1 << player for player in range(PLAYERS) if not place & 1 << player]
        place = min(steps, key=means.__getitem__)
        assert found == place


def test_fewer_windows_are_judged_on_the_whole_text(ablations: ModuleType, saved: Path) -> None:
    rows = ablations.calibration(ablations.load(saved), 2)
    assert [(row["windows"], row["judged on"]) for row in rows] == [
        *((size, judged) for size in (1, 2, 4) for judged in ("all", "left out")), (8, "all"),
    ]  # fmt: skip
    assert rows[-1]["optimum"]["mean"] == 0
    assert rows[0]["optimum"]["mean"] > 0


def test_values_that_are_not_all_there_are_refused(ablations: ModuleType, tmp_path: Path) -> None:
    values = np.zeros((4, 2), dtype=np.float32)
    values[3, 1] = np.nan
    np.savez(tmp_path / "v.npz", values=values, settings=json.dumps({"rounding": "nearest"}), model="toy")
    with pytest.raises(SystemExit, match="without a value"):
        ablations.load(tmp_path / "v.npz")


@pytest.mark.slow
def test_from_the_values_of_sixteen_blocks_to_the_results_page(
    ablations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(make_values(tmp_path / "values_toy_nearest.npz", players=16, windows=4, rounding="nearest"))
    for name in ablations.TABLES:
        monkeypatch.setattr("sys.argv", ["ablations.py", name, path, "--seeds", "2", "--out", str(tmp_path / "r")])
        ablations.main()
    results = importlib.import_module("make_results")
    page = results.page(results.load(tmp_path / "r"))
    for name in ablations.TABLES:
        assert f"Made by `python benchmarks/ablations.py {name} values_toy_nearest.npz --seeds 2 --out r`" in page
    rows = json.loads((tmp_path / "r" / "ablation_permutations_toy_nearest.json").read_text())["rows"]
    by_count = {row["permutations"]: row for row in rows if row["permutations"]}
    assert set(by_count) == {5, 10, 20, 50, 100}
    assert set(by_count[20]) >= {"coopq", "regression", "shapley"}
    assert [set(row) & {"one-at-a-time", "greedy"} for row in rows[-2:]] == [{"one-at-a-time"}, {"greedy"}]
    assert [row["evaluations"] for row in rows[-2:]] == [17, 137]


@pytest.mark.parametrize("name", ["permutations", "alpha", "calibration"])
def test_every_ablation_gives_finite_regrets(ablations: ModuleType, saved: Path, name: str) -> None:
    game = ablations.load(saved)
    rows = ablations.TABLES[name][1](game, 1)
    assert rows
    assert all(np.isfinite(item["mean"]) for row in rows for item in row.values() if isinstance(item, dict))
