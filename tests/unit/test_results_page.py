"""`make results` says what was run and what was not, and reads only saved numbers."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def maker() -> ModuleType:
    return importlib.import_module("make_results")


def cell(perplexity: float, *, best: bool = False, tie: bool = False) -> dict[str, object]:
    return {"perplexity": perplexity, "best": best, "tie": tie}


def comparison(coopq: float, lim: float) -> dict[str, object]:
    def row(value: float, best: bool) -> dict[str, object]:
        excess = {"mean": value / 100, "best": best, "tie": best}
        return {"budgets": [cell(value, best=best, tie=best)], "excess": excess, "regret": None, "evaluations": 0}

    return {
        "model": "llama-mini", "rounding": "nearest", "apply_rounding": "nearest", "avg_bits": [3.0],
        "perplexity_fp": 37.0, "perplexity_uniform": {"2": 600.0, "4": 38.0}, "text": "wiki.txt", "text_windows": 128,
        "window_tokens": 512, "calibration_windows": 32, "permutations": 100, "seconds": 60.0,
        "samples": {"coalitions": 1259}, "command": "apportion compare x",
        "settings": {"calibration_source": "c4.jsonl", "dtype": "bfloat16", "device": "cuda"},
        "methods": {"coopq": row(coopq, coopq < lim), "lim": row(lim, lim < coopq)},
    }  # fmt: skip


def test_nothing_saved_is_said(maker: ModuleType) -> None:
    text = maker.page({})
    assert text.count(maker.NOT_RUN) == 4 + len(maker.MODELS) * len(maker.ROUNDINGS) + len(maker.ABLATIONS)


def test_a_comparison_comes_with_its_command_and_the_claim_is_put_beside_it(maker: ModuleType) -> None:
    text = maker.page({"compare_llama-mini_nearest": comparison(50.0, 40.0)})
    assert "| coopq | 50.00 | 0.500 | – | 0 |" in text
    assert "| lim | **40.00** | **0.400** | – | 0 |" in text
    assert "`apportion compare x`" in text
    assert "+25.0% (lim)" in text
    assert "below the best baseline in 0 of 1 cells" in text
    assert "CoopQ's excess 0.500; lim 0.400" in text


def test_the_claim_is_counted_where_it_is_seen(maker: ModuleType) -> None:
    text = maker.page({"compare_llama-mini_nearest": comparison(30.0, 40.0)})
    assert "below the best baseline in 1 of 1 cells, and by 20 % or more in 1" in text
    assert "Where the paper's ordering was not seen" not in text


def test_finer_choices_are_put_beside_the_papers(maker: ModuleType) -> None:
    finer = comparison(40.0, 45.0)
    finer["settings"] = {**finer["settings"], "widths": [2, 3, 4]}  # type: ignore[dict-item]
    finer["methods"] = {"auto": finer["methods"]["coopq"]}  # type: ignore[index]
    text = maker.page({"compare_llama-mini_nearest": comparison(50.0, 40.0), "compare_llama-mini_nearest_w234": finer})
    assert "| llama-mini | nearest | blocks, 2,4 | coopq | 0.2744 | 1.00 |" in text
    assert "| llama-mini | nearest | blocks, 2,3,4 | auto | 0.0513 | 0.19 |" in text


def test_ablations_and_other_tables_are_shown(maker: ModuleType) -> None:
    rows = [{"permutations": 5, "coopq": {"mean": 0.01, "sd": 0.002}}]
    ablation = {"ablation": "permutations", "title": "Regret", "on": "m", "rows": rows, "command": "c"}
    text = maker.page({"ablation_permutations_m": ablation, "peer": {"title": "A peer", "rows": [{"ppl": 1.5}]}})
    assert "| 5 | 0.0100 ± 0.0020 |" in text
    assert "### A peer" in text
    assert "The command was not saved" in text


def test_a_broken_file_is_reported_and_left_out(
    maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compare_a.json").write_text("{")
    (tmp_path / "b.json").write_text(json.dumps({"title": "b", "rows": []}))
    assert list(maker.load(tmp_path)) == ["b"]
    assert "left out" in capsys.readouterr().err


def test_auto_with_more_widths_is_put_beside_the_papers_setting(maker: ModuleType) -> None:
    cell = {"perplexity": 20.0, "interval": [19.0, 21.0]}
    best = {
        "model": "llama-mini",
        "rounding": "nearest",
        "budgets": [cell] * 6,
        "uniform": {"2": 90.0, "3": 30.0, "4": 10.0},
        "excess_over_six": 0.25,
        "command": "python benchmarks/best.py x",
        "seconds": 3,
    }
    behind = [{"mean": -0.1, "low": -0.2, "high": 0.0}] * 5 + [{"mean": 0.1, "low": 0.05, "high": 0.2}]
    best["rivals"] = {
        name: {"excess_over_six": excess, "auto_behind": behind}
        for name, excess in (("coopq", 0.5), ("best-isolated", 0.4))
    }
    text = maker.page({"best_llama-mini_nearest": best, "best_llama-mini_nearest_tuned": best | {"tune": 200}})
    assert "20.00 [19.0, 21.0]" in text
    assert "| 90.00 / 30.00 / 10.00 |" in text
    assert "| llama-mini | nearest | 0.2500 | 0.5000 | 0.50 | 0.4000 | 0.62 | 1 of 6 |" in text
    assert "| llama-mini | nearest, tuned | 0.2500 |" in text
    assert "`python benchmarks/best.py x`" in text
