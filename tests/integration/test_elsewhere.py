"""The last choice of `auto` in `compare`: finalists meet on windows that no search has seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apportion.bits.compare.compare import CompareRequest, compare
from apportion.bits.compare.elsewhere import FINALISTS, Elsewhere, finalists
from apportion.bits.finalists import Judges
from apportion.bits.game import sample, widths_by_path
from apportion.bits.plan import Found, budget_from_bits, search
from apportion.bits.quantize import open_model
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import round_plan, rounding_named
from apportion.core.log import read_log

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def recipe(text_file: Path) -> Recipe:
    return Recipe(group_size=32, calibration=text_file, windows=2, window_tokens=24, permutations=2, rounding="nearest")


@pytest.fixture(scope="module")
def searched(
    checkpoint: Make, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Quantizer, Elsewhere, Found]:
    out = tmp_path_factory.mktemp("elsewhere")
    quantizer = open_model(str(checkpoint("llama", blocks=3)), recipe)
    with quantizer.game(out / "samples") as game:
        samples = sample(game, out / "samples", quantizer.orders())
        elsewhere = Elsewhere.of(quantizer, quantizer, game.text, out / "judges.log")
        used = game.text.windows
        budgets = [budget_from_bits(quantizer.costs, 3.0)]
        found, _ = search(game, samples, budgets, evaluations=30, seed=0)
    seen = {tuple(row) for row in used.tolist()}
    assert not seen & {tuple(row) for row in elsewhere.judges.windows.windows.tolist()}
    assert len(elsewhere.judges.windows.windows) > len(used)
    return quantizer, elsewhere, found[0]


def naive(quantizer: Quantizer, judges: Judges, plan: tuple[int, ...]) -> float:
    """Mean loss with every linear rounded and put in place."""
    staged = quantizer.staged
    packed = round_plan(staged, rounding_named("nearest"), widths_by_path(staged, quantizer.costs, plan), None)
    with staged.in_place(packed):
        return float(staged.window_nll(judges.windows.windows).mean())


def test_the_finalist_that_is_best_on_other_windows_is_kept(searched: tuple[Quantizer, Elsewhere, Found]) -> None:
    quantizer, elsewhere, found = searched
    few = finalists(found)
    assert 1 < len(few) <= FINALISTS + 2
    losses = [naive(quantizer, elsewhere.judges, plan) for plan in few]
    assert elsewhere.choose([found]) == [few[int(np.argmin(losses))]]


def test_a_plan_that_only_luck_put_first_is_not_kept(searched: tuple[Quantizer, Elsewhere, Found]) -> None:
    quantizer, elsewhere, found = searched
    plans = [quantizer.costs.uniform(column) for column in (0, -1)]
    good, bad = sorted(plans, key=lambda plan: naive(quantizer, elsewhere.judges, plan))
    lucky = replace(found, assignment=bad, tried=((bad, 0.0), (good, 9.0)), uniform=(bad,))
    assert elsewhere.choose([lucky, replace(lucky, tried=((bad, 0.0),))]) == [good, bad]


def test_what_plans_of_auto_were_judged_on_is_said_and_a_resumed_run_judges_none_again(
    checkpoint: Make, text_file: Path, recipe: Recipe, tmp_path: Path
) -> None:
    ask = CompareRequest(
        text_file, ("auto", "shapley"), (3.0,), text_windows=4, curve=False, device="cpu", dtype="float32"
    )
    model, out = str(checkpoint("llama", blocks=3)), tmp_path / "out"
    result = compare(model, out, ask, recipe)
    assert result["auto_judged_on"].endswith("windows unseen by search")
    log = out / "auto-judges.log"
    judged = len(read_log(log)[1])
    assert judged > 1
    (out / "manifest.json").unlink()
    (out / "plans" / "auto.json").unlink()
    again = compare(model, out, ask, recipe, resume=True)
    assert again["methods"]["auto"]["budgets"] == result["methods"]["auto"]["budgets"]
    assert len(read_log(log)[1]) == judged
    assert compare(model, tmp_path / "other", replace(ask, methods=("shapley",)), recipe)["auto_judged_on"] is None
