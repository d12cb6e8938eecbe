"""Ablations of the estimators, each saved as JSON under docs/results/ with the command that made it.

Most need no model: `benchmarks/gpu_compare.py` saves the NLL of all 65,536 coalitions per calibration window
(`values_<model>_<rounding>.npz`), and any run of SPQE is a subset of those values. Plans made with one rounding and
written with another: `gpu_compare.py --apply-rounding`.

    python benchmarks/ablations.py permutations VALUES.npz     5 to 100 permutations, several seeds
    python benchmarks/ablations.py alpha        VALUES.npz     shrinkage 0, .5, 1
    python benchmarks/ablations.py antithetic   VALUES.npz     pairs of reversed permutations
    python benchmarks/ablations.py calibration  VALUES.npz     fewer windows, judged on all and on those left out
    python benchmarks/ablations.py pruning      MODEL --text FILE  SPQE against skipping blocks altogether
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from command_line import own_command

from apportion.bits.compare.greedy import demotion_path
from apportion.bits.compare.optimum import assignment_at, demoted_counts, index_of
from apportion.bits.compare.scores import one_at_a_time
from apportion.bits.game import Assignment, Costs, Player, Samples
from apportion.bits.game.spqe import coalitions, draw_permutations
from apportion.bits.plan import Sensitivity, estimate
from apportion.core.arrays import NDArray
from apportion.formats import grid_width
from apportion.models.text import Windows

METHODS = ("coopq", "shapley", "regression")
MEASURED = ("one-at-a-time", "greedy")  # they choose what they measure; no permutations, nothing random
COUNTS = (5, 10, 20, 50, 100)
SIZES = (1, 2, 4, 8, 16, 32)
WIDTHS = (grid_width(2, 64), grid_width(4, 64))
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Everything:
    """The NLL of every coalition of one model under one rounding.

    Attributes:
        values: [coalitions, windows] in the index order of `apportion.bits.compare.optimum`.
        low: [coalitions, players] whether each player is at the low width.
        demoted: [coalitions] how many are.
    """

    model: str
    settings: dict[str, object]
    values: Array
    low: NDArray[np.bool_]
    demoted: NDArray[np.int64]

    @property
    def name(self) -> str:
        return f"{self.model}_{self.settings['rounding']}"

    @property
    def players(self) -> int:
        return self.low.shape[1]

    @property
    def windows(self) -> int:
        return self.values.shape[1]

    def samples(self, orders: NDArray[np.int64], windows: slice = slice(None)) -> Samples:
        """What SPQE would have measured along these permutations on these windows."""
        costs = costs_of_equals(self.players)
        asked = set(coalitions(orders, 0, costs.high))
        values = {item: self.values[index_of(item), windows] for item in sorted(asked)}
        count = self.values[:, windows].shape[1]
        text = Windows(torch.zeros((count, 2), dtype=torch.long), "values that were measured before")
        return Samples(costs, text, orders, values, nll_fp=np.zeros(count), settings={}, counts={})

    def places(self, method: str, orders: NDArray[np.int64], windows: slice = slice(None)) -> NDArray[np.int64]:
        """Places of a method's plans for 1 .. players - 1 demoted players, made on these windows."""
        if method == "optimum":
            return best_places(self, windows)
        if method in METHODS:
            return self.plans(estimate(self.samples(orders, windows), method))
        looked = Looked(self, windows)
        samples = self.samples(orders[:1], windows)
        if method == "one-at-a-time":
            return self.plans(one_at_a_time(looked, samples))
        return np.asarray([index_of(item) for item in demotion_path(looked, looked.costs)[1:-1]])

    def plans(self, sensitivity: Sensitivity) -> NDArray[np.int64]:
        """Places of the surrogate's best plans for 1 .. players - 1 demoted players, by looking at all."""
        x = self.low.astype(np.float64)
        predicted = x @ sensitivity.linear + ((x @ sensitivity.pair) * x).sum(1) / 2
        return np.asarray(
            [np.where(self.demoted == count, predicted, np.inf).argmin() for count in range(1, self.players)]
        )

    def regret(self, places: NDArray[np.int64], windows: slice = slice(None)) -> float:
        """Mean over the numbers of demoted players of the NLL above the optimum's, on these windows."""
        means = self.values[:, windows].mean(1)
        best = [means[self.demoted == count].min() for count in range(1, self.players)]
        return float(np.mean(means[places] - best))


class Looked:
    """The game whose values are looked up."""

    def __init__(self, everything: Everything, windows: slice) -> None:
        self.everything, self.windows = everything, windows
        self.costs = costs_of_equals(everything.players)

    def values(self, assignments: Sequence[Assignment]) -> Array:
        """Rows of the values."""
        return self.everything.values[[index_of(item) for item in assignments], self.windows]


def costs_of_equals(count: int) -> Costs:
    """Players of one weight each: two bytes at the low width, four at the high one."""
    players = tuple(Player(f"block {i}", i, ("all",)) for i in range(count))
    bits = np.tile([width.bits for width in WIDTHS], (count, 1))
    return Costs(players, WIDTHS, bits.astype(np.int64), bits.astype(np.float64), np.ones(count, np.int64), 0)


def load(path: Path) -> Everything:
    """Read what `gpu_compare.py` saved."""
    with np.load(path) as file:
        values = file["values"].astype(np.float64)
        settings, model = json.loads(str(file["settings"])), str(file["model"])
    players = int(np.log2(len(values)))
    if len(values) != 2**players or not np.isfinite(values).all():
        raise SystemExit(f"{path}: {len(values)} coalitions, some without a value: expected all of a number of players")
    low = np.asarray([assignment_at(place, players) for place in range(len(values))]) == 0
    return Everything(model, settings, values, low, demoted_counts(players))


def mean_and_spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def regrets(
    game: Everything, seeds: int, count: int, method: str, *, alpha: float = 0.5, antithetic: bool = False
) -> dict[str, float]:
    """Mean and spread over seeds of a method's mean regret."""
    found = []
    for seed in range(seeds):
        orders = draw_permutations(game.players, count, seed, antithetic=antithetic)
        found.append(game.regret(game.plans(estimate(game.samples(orders), method, alpha=alpha))))
    return mean_and_spread(found)


def permutations(game: Everything, seeds: int) -> list[dict[str, object]]:
    """Regret against the number of permutations; evaluations are distinct coalitions."""
    rows: list[dict[str, object]] = []
    for count in COUNTS:
        sizes = [len(game.samples(draw_permutations(game.players, count, seed)).values) for seed in range(seeds)]
        row = {"permutations": count, "evaluations": float(np.mean(sizes))}
        rows.append(row | {method: regrets(game, seeds, count, method) for method in METHODS})
        print(rows[-1], file=sys.stderr)
    orders, n = draw_permutations(game.players, 1, 0), game.players
    for method, needed in zip(MEASURED, (n + 1, n * (n + 1) // 2 + 1), strict=True):
        regret = mean_and_spread([game.regret(game.places(method, orders))])
        rows.append({"permutations": None, "evaluations": float(needed), method: regret})
    return rows


def alphas(game: Everything, seeds: int) -> list[dict[str, object]]:
    """Regret of coopq against its shrinkage, and how many of its plans differ from those of the means alone."""
    rows = []
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        changed = []
        for seed in range(seeds):
            samples = game.samples(draw_permutations(game.players, 100, seed))
            own = game.plans(estimate(samples, "coopq", alpha=alpha))
            changed.append(float((own != game.plans(estimate(samples, "shapley"))).mean()))
        row = {"alpha": alpha, "permutations": 100, "plans unlike shapley's": mean_and_spread(changed)}
        rows.append(row | {"coopq": regrets(game, seeds, 100, "coopq", alpha=alpha)})
    return rows


def antithetic(game: Everything, seeds: int) -> list[dict[str, object]]:
    """Error of the Shapley means (root mean square against 2,000 permutations) and regret, with and without pairs."""
    exact = phi(game, draw_permutations(game.players, 2000, 10**6))
    rows = []
    for count in (4, 10, 20, 50, 100):
        for paired in (False, True):
            errors = [
                float(np.sqrt(np.mean((phi(game, orders) - exact) ** 2)))
                for seed in range(seeds)
                for orders in [draw_permutations(game.players, count, seed, antithetic=paired)]
            ]
            row = {"permutations": count, "antithetic": paired, "error of phi": mean_and_spread(errors)}
            rows.append(row | {name: regrets(game, seeds, count, name, antithetic=paired) for name in METHODS})
    return rows


def phi(game: Everything, orders: NDArray[np.int64]) -> Array:
    """Shapley means along permutations."""
    return np.asarray(estimate(game.samples(orders), "shapley").details["phi"])


def calibration(game: Everything, seeds: int) -> list[dict[str, object]]:
    """Plans from fewer windows, judged on the whole text and on the windows left out; 100 permutations.

    Each seed draws other permutations and takes other windows; the optimum is that of the fewer windows.
    """
    methods = (*METHODS, *MEASURED, "optimum")
    rows: list[dict[str, object]] = []
    for size in [n for n in SIZES if n <= game.windows]:
        judged = {"all": slice(None)} | ({"left out": slice(size, None)} if size < game.windows else {})
        found: dict[str, dict[str, list[float]]] = {name: {method: [] for method in methods} for name in judged}
        for seed in range(seeds):
            rolled = replace(game, values=np.roll(game.values, -seed * game.windows // seeds, axis=1))
            orders = draw_permutations(game.players, 100, seed)
            for method in methods:
                places = rolled.places(method, orders, slice(size))
                for name, windows in judged.items():
                    found[name][method].append(rolled.regret(places, windows))
        for name, values in found.items():
            row = {"windows": size, "judged on": name}
            rows.append(row | {method: mean_and_spread(item) for method, item in values.items()})
        print(rows[-1], file=sys.stderr)
    return rows


def best_places(game: Everything, windows: slice) -> NDArray[np.int64]:
    """Places of the best plans on some windows, by number of demoted players."""
    means = game.values[:, windows].mean(1)
    return np.asarray([np.where(game.demoted == count, means, np.inf).argmin() for count in range(1, game.players)])


TABLES: dict[str, tuple[str, Callable[[Everything, int], list[dict[str, object]]]]] = {
    "permutations": ("Mean regret against the number of permutations, nats", permutations),
    "alpha": ("Mean regret of coopq against its shrinkage, nats", alphas),
    "antithetic": ("Antithetic pairs of permutations: error of the Shapley means and mean regret, nats", antithetic),
    "calibration": ("Plans from fewer calibration windows: mean regret, nats", calibration),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation", choices=[*TABLES, "pruning"])
    parser.add_argument("input", help="values_*.npz, or a model folder for pruning")
    parser.add_argument("--seeds", type=int, default=5, help="independent draws of permutations")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--text", type=Path, help="calibration text of pruning")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--permutations", type=int, default=20)
    parser.add_argument("--rounding", default="nearest")
    asked = parser.parse_args()
    if asked.ablation == "pruning":
        from pruning import pruning

        name, title = Path(asked.input).name, "SPQE against skipping blocks: spread of the marginals, nats"
        rows = pruning(asked)
    else:
        game = load(Path(asked.input))
        name, (title, table) = game.name, TABLES[asked.ablation]
        rows = table(game, asked.seeds)
    path = asked.out / f"ablation_{asked.ablation}_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"kind": "ablation", "ablation": asked.ablation, "title": title, "on": name, "seeds": asked.seeds}
    path.write_text(json.dumps({**content, "command": own_command(), "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
