"""The table of a real model: what the saved files say, and one line where they are not there or do not fit."""

import json
import shutil
from pathlib import Path

import pytest

from apportion.core.artifact import plain
from apportion.demo.show_real import OUTCOMES, RESULTS, ROUTED, NotThere, RealShown, real_text, show_real
from apportion.demo.show_route import SHOWN_WEIGHTS
from apportion.route.ask.strategy import STRATEGIES


def copied(folder: Path) -> Path:
    for name in (OUTCOMES, ROUTED, "six600.json"):
        shutil.copy(RESULTS / name, folder / name)
    return folder


def test_the_table_says_what_the_files_say_and_what_made_them() -> None:
    found, saved = show_real(), json.loads((RESULTS / ROUTED).read_text())
    assert isinstance(found, RealShown)
    whole, text = found.sets[-1], real_text(found)
    said = saved["by_set"][0]["pipelines"]
    for name, quality, tokens in zip(STRATEGIES, whole.quality, whole.tokens, strict=True):
        assert quality == pytest.approx(said[name]["quality"])
        assert tokens == pytest.approx(said[name]["tokens"])
    assert {row.strategy for row in found.rows} == {*STRATEGIES, "router", "oracle"}
    assert sum(row.questions for row in found.sets[:-1]) == whole.questions == saved["questions"]
    better, weights = saved["summary"]["beaten"], saved["summary"]["weights"]
    assert f"better than the best static pipeline at {better} of {weights} weights" in text
    assert saved["command"] in text
    assert "six_sets.py collect" in text
    judged = {(one["token_weight"], one["latency_weight"]): one["gain"] for one in saved["weights"]}
    assert [one.verdict for one in found.gains] == [judged[pair]["verdict"] for pair in SHOWN_WEIGHTS]
    assert found.weaker == ()
    assert json.loads(json.dumps(plain(found)))["model"] == found.model


def test_a_real_model_is_left_out_in_one_line_where_its_results_are_not_there(tmp_path: Path) -> None:
    found = show_real(tmp_path)
    assert isinstance(found, NotThere)
    assert real_text(found).count("\n") == 0
    assert OUTCOMES in found.reason
    (copied(tmp_path) / ROUTED).unlink()
    assert f"{ROUTED} is not in" in real_text(show_real(tmp_path))


def test_results_of_other_outcomes_are_said_to_be(tmp_path: Path) -> None:
    path = copied(tmp_path) / ROUTED
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "sha256": {**saved["sha256"], "judge": "another"}}))
    found = show_real(tmp_path)
    assert isinstance(found, RealShown)
    assert any("another six600_judge.parquet" in said for said in found.weaker)
    assert found.weaker[0] in real_text(found)


def test_weights_that_keep_the_quality_may_not_be_found(tmp_path: Path) -> None:
    path = copied(tmp_path) / ROUTED
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "savings_chosen_on_folds": {"weights": None, "reason": "none"}}))
    assert "Against always" not in real_text(show_real(tmp_path))
