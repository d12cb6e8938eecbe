"""`compare`: every method on three architectures, each plan measured once, resumable, refusals."""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from apportion.bits.compare.compare import CompareRequest, compare
from apportion.bits.compare.methods import DEFAULT, METHODS, RANDOM_PLANS
from apportion.bits.game import decode
from apportion.bits.quantize import QuantizeRequest
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import ROUNDINGS
from apportion.bits.rounding.nearest import Nearest
from apportion.cli import main
from apportion.core.errors import ApportionError, ArtifactMismatchError, InputError
from apportion.core.log import read_log
from apportion.formats import GridWeight, Shapes, Width
from apportion.formats.compressed_tensors import CompressedTensors
from tests.tiny_models import KINDS

Make = Callable[..., Path]


class Cramped(CompressedTensors):
    """A format that holds nothing."""

    def shapes(self, *_: object) -> Shapes:
        raise InputError("cannot hold this shape")


class Shrunk(Nearest):
    """Another rounding: what `nearest` makes of nine tenths of the weight."""

    name = "shrunk"

    def round(self, weight: Tensor, width: Width, *rest: object) -> GridWeight:
        return super().round(weight * 0.9, width)


def ask_for(text_file: Path, **changes: object) -> tuple[CompareRequest, Recipe]:
    recipe = Recipe(group_size=32, calibration=text_file, windows=2, window_tokens=24, permutations=3)
    ask = CompareRequest(text_file, tuple(METHODS), avg_bits=(2.5, 3.0), text_windows=4, device="cpu", dtype="float32")
    return replace(ask, **changes), recipe  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(checkpoint: Make, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    ask, recipe = ask_for(text_file)
    compare(str(checkpoint("llama", blocks=4)), out, ask, recipe)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_gives_plans_within_every_budget(
    kind: str, checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    ask, recipe = ask_for(text_file, curve=False)
    result = compare(str(checkpoint(kind, blocks=3)), tmp_path / "out", ask, recipe)
    assert list(result["methods"]) == list(METHODS)
    for row in result["methods"].values():
        for bits, cell in zip((2.5, 3.0), row["budgets"], strict=True):
            assert all(np.mean([2 + 2 * place for place in decode(item)]) <= bits for item in cell["plans"])
            assert np.isfinite(cell["perplexity"])


def test_linears_as_players_and_three_widths(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    methods = tuple(name for name in METHODS if name not in ("optimum", "regression", "auto"))
    ask, recipe = ask_for(text_file, curve=False, methods=methods, avg_bits=(3.0,))
    recipe = replace(recipe, players="linears", widths=(2, 3, 4), permutations=2)
    result = compare(str(checkpoint("llama", blocks=2)), tmp_path / "out", ask, recipe)
    for row in result["methods"].values():
        assert all(cell["avg_bits"] <= 3.0 + 1e-9 for cell in row["budgets"])


def test_the_optimum_has_no_regret_and_no_other_method_less(finished: Path) -> None:
    rows = json.loads((finished / "result.json").read_text())["methods"]
    assert rows["optimum"]["regret"]["mean"] == 0
    assert all(min(row["regret"]["curve"]) >= 0 for row in rows.values())
    assert len(rows["random"]["budgets"][0]["plans"]) == RANDOM_PLANS
    assert rows["random"]["budgets"][0]["spread"] is not None


def test_every_distinct_plan_is_measured_once(finished: Path) -> None:
    _, records, _ = read_log(finished / "text.log")
    measured = [record["assignment"] for record in records]
    asked = {
        item
        for path in (finished / "plans").glob("*.json")
        for choice in json.loads(path.read_text())["plans"]
        for item in choice
    }
    assert len(measured) == len(set(measured))
    assert set(measured) == asked | {"0000", "1111"}


def test_shared_values_stay_as_sampled_whatever_methods_measure(finished: Path) -> None:
    _, records, _ = read_log(finished / "samples" / "values.log")
    _, more, _ = read_log(finished / "calibration.log")
    _, all_of_them, _ = read_log(finished / "optimum.log")
    sampled = {record["assignment"] for record in records}
    assert not sampled & {record["assignment"] for record in more}
    assert len(sampled) + len(all_of_them) == 16


def test_the_best_is_bold_and_measured_values_agree_with_the_log(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    _, records, _ = read_log(finished / "text.log")
    values = {record["assignment"]: float(np.mean(record["nll"])) for record in records}
    for place in range(2):
        cells = {name: row["budgets"][place] for name, row in result["methods"].items() if name != "optimum"}
        for cell in cells.values():
            assert cell["nll"] == pytest.approx(np.mean([values[item] for item in cell["plans"]]))
        best = min(cells.values(), key=lambda cell: float(cell["nll"]))
        assert best["best"]
        assert best["tie"]
    assert "**" in (finished / "table.md").read_text()


def test_excess_is_the_curve_above_all_highest(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    row = result["methods"]["coopq"]
    assert len(row["curve"]) == 15
    assert row["excess"]["mean"] == pytest.approx(np.mean([point["excess"] for point in row["curve"]]))


def test_an_interrupted_comparison_goes_on_and_ends_with_the_same_numbers(
    finished: Path, checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, recipe = ask_for(text_file)
    model, out = str(checkpoint("llama", blocks=4)), tmp_path / "out"

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "lim", killed)
        with pytest.raises(KeyboardInterrupt):
            compare(model, out, ask, recipe)
    done = (out / "plans" / "greedy.json").stat().st_mtime_ns
    result = compare(model, out, ask, recipe, resume=True)
    assert (out / "plans" / "greedy.json").stat().st_mtime_ns == done
    first = json.loads((finished / "result.json").read_text())
    for name, row in first["methods"].items():
        assert row["budgets"] == result["methods"][name]["budgets"]
        assert row["excess"] == result["methods"][name]["excess"]
    assert compare(model, out, ask, recipe, resume=True)["methods"] == result["methods"]
    with pytest.raises(ArtifactMismatchError, match="text_windows"):
        compare(model, out, replace(ask, text_windows=3), recipe, resume=True)


def test_a_method_killed_halfway_reports_all_that_it_measured(
    checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    ask, recipe = ask_for(text_file, methods=("one-at-a-time", "greedy"), curve=False)
    model, out = str(checkpoint("llama", blocks=4)), tmp_path / "out"
    first = compare(model, out, ask, recipe)["methods"]
    assert first["greedy"]["evaluations"] >= 2
    for name in ("manifest.json", "plans/greedy.json"):
        (out / name).unlink()
    log = out / "calibration.log"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    again = compare(model, out, ask, recipe, resume=True)["methods"]
    assert [again[name]["evaluations"] for name in first] == [first[name]["evaluations"] for name in first]


def test_evaluations_of_a_method_do_not_depend_on_the_order(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    model, names = str(checkpoint("llama", blocks=4)), ("one-at-a-time", "greedy", "optimum")
    found = []
    for order in (names, names[::-1]):
        ask, recipe = ask_for(text_file, methods=order, curve=False)
        rows = compare(model, tmp_path / order[0], ask, recipe)["methods"]
        found.append({name: rows[name]["evaluations"] for name in names})
    assert found[0] == found[1]
    shared = len(read_log(tmp_path / "optimum" / "samples" / "values.log")[1])
    assert found[0]["optimum"] == 16 - shared


def test_plans_of_one_rounding_are_evaluated_with_another(
    finished: Path, checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROUNDINGS, "shrunk", Shrunk)
    ask, recipe = ask_for(text_file, methods=("coopq",), curve=False)
    recipe = replace(recipe, apply_rounding="shrunk")
    result = compare(str(checkpoint("llama", blocks=4)), tmp_path / "out", ask, recipe)
    other = json.loads((finished / "result.json").read_text())["methods"]["coopq"]["budgets"]
    cells = result["methods"]["coopq"]["budgets"]
    assert [cell["plans"] for cell in cells] == [cell["plans"] for cell in other]
    assert cells[0]["perplexity"] != other[0]["perplexity"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ("coopq", "magic")}, "magic.*\n.*choose from .*coopq, regression"),
        ({"methods": ("coopq", "coopq")}, "each method once"),
        ({"avg_bits": (1.5,)}, "from 2 to 4"),
        ({"alpha": 2.0}, "from 0 to 1"),
        ({"permutations": 1}, "coopq needs at least 2"),
        ({"widths": (2, 3, 4)}, "SPQE measures only w2g32 and w4g32"),
        ({"text_windows": 0}, "at least 1"),
        ({"text": Path("absent.txt")}, "no such file"),
        ({"apply_rounding": "magic"}, "unknown"),
        ({"apply_rounding": "quanto", "widths": (2, 3), "methods": ("coopq",), "avg_bits": (2.5,)}, "not supported"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    changes: dict[str, object], said: str, text_file: Path, tmp_path: Path
) -> None:
    of_samples = {
        name: value for name, value in changes.items() if name in ("permutations", "widths", "apply_rounding")
    }
    ask, recipe = ask_for(text_file, **{name: changes[name] for name in changes.keys() - of_samples})
    recipe = replace(recipe, **of_samples)  # type: ignore[arg-type]
    with pytest.raises(ApportionError, match=said):
        compare("/absent", tmp_path / "out", ask, recipe)
    assert not (tmp_path / "out").exists()


def test_what_the_judging_rounding_cannot_hold_is_refused_before_any_work(
    checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(Shrunk):
        format = Cramped()

    monkeypatch.setitem(ROUNDINGS, "shrunk", Picky)
    ask, recipe = ask_for(text_file, methods=("coopq",))
    recipe = replace(recipe, apply_rounding="shrunk")
    with pytest.raises(InputError, match="cannot hold this shape"):
        compare(str(checkpoint("llama", blocks=3)), tmp_path / "out", ask, recipe)
    with pytest.raises(InputError, match="--text-windows 100000"):
        compare(str(checkpoint("llama", blocks=3)), tmp_path / "out", *ask_for(text_file, text_windows=100_000))
    assert not (tmp_path / "out").exists()


def test_the_optimum_of_seventeen_blocks_is_refused(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    ask, recipe = ask_for(text_file, methods=("optimum",))
    with pytest.raises(InputError, match="131,072"):
        compare(str(checkpoint("llama", blocks=17)), tmp_path / "out", ask, recipe)


def test_a_finished_comparison_is_read_back(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    model, (ask, recipe) = str(checkpoint("llama", blocks=3)), ask_for(text_file, methods=("lim",), curve=False)
    first = compare(model, tmp_path / "out", ask, recipe)
    assert compare(model, tmp_path / "out", ask, recipe, resume=True) == first


def test_code_that_comes_with_the_model_is_run_where_it_is_trusted(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = []
    module = importlib.import_module("apportion.bits.compare.compare")

    def opened(_model: str, _recipe: Recipe, place: QuantizeRequest) -> None:
        trusted.append(place.trust_remote_code)
        raise LookupError

    monkeypatch.setattr(module, "open_model", opened)
    ask, recipe = ask_for(text_file, methods=("lim",), trust_remote_code=True)
    with pytest.raises(LookupError):
        compare("/absent", tmp_path / "out", ask, recipe)
    assert trusted == [True]


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["apportion", "compare", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_prints_one_json_object(
    checkpoint: Make,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = f"--group-size 32 --windows 2 --window-tokens 24 --permutations 2 --text-windows 2 --text {text_file}"
    model = checkpoint("llama", blocks=3)
    code = run_command(
        monkeypatch, model, *asked.split(), "--calibration", text_file, "--methods", "coopq,lim", "--avg-bits", "3",
        "--no-curve", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["methods"]) == ["coopq", "lim"]
    assert result["out"] == str(tmp_path / "out")


def test_the_command_refuses_an_unknown_method_and_lists_the_known(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(monkeypatch, "x", "--text", text_file, "--methods", "magic", "--out", tmp_path / "out")
    assert code == 1
    assert "choose from" in capsys.readouterr().err


def test_a_comparison_resumed_with_another_rounding_of_its_plans_is_another_run(
    checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROUNDINGS, "shrunk", Shrunk)
    model, (ask, recipe) = str(checkpoint("llama", blocks=3)), ask_for(text_file, methods=("lim",), curve=False)
    compare(model, tmp_path / "out", ask, recipe)
    with pytest.raises(ArtifactMismatchError, match="apply_rounding"):
        compare(model, tmp_path / "out", ask, replace(recipe, apply_rounding="shrunk"), resume=True)


def test_the_exhaustive_optimum_is_asked_for_by_name_only(text_file: Path) -> None:
    assert CompareRequest(text_file).methods == DEFAULT
    assert "optimum" not in DEFAULT
    assert set(DEFAULT) | {"optimum"} == set(METHODS)


def test_a_run_embeds_each_of_its_three_texts_once(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    ask, recipe = ask_for(text_file, methods=("one-at-a-time", "greedy", "auto"), curve=False)
    result = compare(str(checkpoint("llama", blocks=3)), tmp_path / "out", ask, recipe)
    assert result["execution"]["engine"] == "plain"
    assert result["execution"]["embeddings"] == 4  # calibration, auto's judges, held-out text, the check's window
