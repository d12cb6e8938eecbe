"""`make results` says what was run and what was not, and reads only saved numbers."""

import argparse
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = re.compile(r"""(?:^|(?<=[\s"'`=,:(\[]))(?:/(?!/)|~/)[\w.-]+""")  # a path of some machine
API = re.compile(r"/v1(?:/\w+)*|/metrics|/health|/ready|/decisions")  # what a server answers to is no file


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
    routing = "\n".join(maker.route_part({})).count(maker.NOT_RUN)
    assert text.count(maker.NOT_RUN) == 10 + routing + len(maker.MODELS) * len(maker.ROUNDINGS) + len(maker.ABLATIONS)


def test_a_comparison_comes_with_its_command_and_the_claim_is_put_beside_it(maker: ModuleType) -> None:
    text = maker.page({"compare_llama-mini_nearest": comparison(50.0, 40.0)})
    assert "| coopq | 50.00 | 0.500 | – | 0 |" in text
    assert "| lim | **40.00** | **0.400** | – | 0 |" in text
    assert "`apportion compare x`" in text
    assert "below the best baseline in 0 of 1 cells" in text
    claims = maker.claims_page({"compare_llama-mini_nearest": comparison(50.0, 40.0)})
    assert "+25.0% (lim)" in claims
    assert "below the best baseline in 0 of 1 cells" in claims
    assert "CoopQ's excess 0.500; lim 0.400" in claims


def test_the_claim_is_counted_where_it_is_seen(maker: ModuleType) -> None:
    text = maker.page({"compare_llama-mini_nearest": comparison(30.0, 40.0)})
    assert "below the best baseline in 1 of 1 cells, and by 20 % or more in 1" in text
    claims = maker.claims_page({"compare_llama-mini_nearest": comparison(30.0, 40.0)})
    assert "Where the paper's ordering was not seen" not in claims


def test_a_measured_score_of_one_block_alone_is_held_against_the_claim(maker: ModuleType) -> None:
    result = comparison(30.0, 40.0) | {"model": "smollm2-135m"}
    methods: Any = result["methods"]
    methods["one-at-a-time"] = {**methods["lim"], "budgets": [cell(24.0)]}
    text = maker.claims_page({"compare_smollm2-135m_nearest": result})
    assert "Pretrained models (smollm2-135m), nearest: the claim's size is seen" in text
    assert "CoopQ's perplexity is 30.0 to 30.0, full precision's 37.0" in text
    assert "All are of usable models (within 10 times full precision)." in text
    assert "Not run, or withdrawn (quanto, see [LOG.md](../LOG.md)), on pretrained models: " in text
    assert "| smollm2-135m | nearest | -25.0% (lim) | -25.0% |" in text
    assert "| smollm2-135m | nearest | +25.0% (one-at-a-time) | +25.0% |" in text
    assert "smollm2-135m (gptq, hqq, quanto), gemma3-270m (all roundings)" in text


def test_a_direction_without_the_size_is_called_so(maker: ModuleType) -> None:
    text = maker.claims_page({"compare_smollm2-135m_gptq": comparison(37.0, 40.0) | {"model": "smollm2-135m"}})
    assert "the claim's direction is seen, not its size" in text


def test_the_verdict_is_taken_from_usable_models(maker: ModuleType) -> None:
    hqq = {"rounding": "hqq", "apply_rounding": "hqq"}
    mixed = comparison(400.0, 4000.0) | hqq | {"model": "gemma3-270m"}  # 10.8 times full precision, and 90 % below
    near = comparison(36.0, 40.0) | hqq | {"model": "smollm2-135m"}
    text = maker.claims_page({"compare_gemma3-270m_hqq": mixed, "compare_smollm2-135m_hqq": near})
    assert (
        "hqq: the claim's direction is seen, not its size.** CoopQ is below the best baseline in 2 of 2 cells" in text
    )
    assert "and by 20 % or more in 1; from -90.0% to -10.0%, mean -70.0%." in text
    told = (
        "The verdict is on usable models (within 10 times full precision): below in 1 of 1 cells, by 20 % or more in 0"
    )
    assert f"{told}, mean -10.0%." in text
    assert "nobody would use" not in text


def test_a_verdict_on_models_of_no_use_is_called_so(maker: ModuleType) -> None:
    far = comparison(400.0, 4000.0) | {"model": "gemma3-270m"}
    text = maker.claims_page({"compare_gemma3-270m_nearest": far})
    assert "nearest: the claim's size is seen.**" in text
    assert (
        "No plan of CoopQ's is within 10 times full precision, so this compares models that nobody would use." in text
    )


def test_equal_plans_are_called_so(maker: ModuleType) -> None:
    result = comparison(40.0, 40.0)
    methods: Any = result["methods"]
    for row in methods.values():
        row["budgets"][0]["plans"] = ["1001"]
    text = maker.claims_page({"compare_llama-mini_nearest": result})
    assert "| llama-mini | nearest | same plan (lim) | +0.0% |" in text


def test_pretrained_models_come_before_the_minis(maker: ModuleType) -> None:
    real = comparison(30.0, 40.0) | {"model": "smollm2-135m", "note": "greedy was left out"}
    text = maker.page({"compare_llama-mini_nearest": comparison(30.0, 40.0), "compare_smollm2-135m_nearest": real})
    parts = [
        text.index(f"# {title}") for title in ("smollm2-135m, nearest", "Appendix: mini models", "llama-mini, nearest")
    ]
    assert parts == sorted(parts)
    assert text.count("### smollm2-135m, nearest") == text.count("### llama-mini, nearest") == 1
    assert "Greedy was left out." in text


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


def strings(value: object) -> Iterator[str]:
    """All keys and texts of a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def elsewhere(texts: Iterator[str]) -> list[str]:
    return [text for text in texts if ELSEWHERE.search(text)]


def test_no_saved_result_names_a_folder_of_the_machine_it_was_made_on() -> None:
    saved = {path.name: json.loads(path.read_text()) for path in (ROOT / "docs" / "results").glob("*.json")}
    assert saved
    assert {name: found for name, item in saved.items() if (found := elsewhere(strings(item)))} == {}


def test_no_page_names_a_folder_of_a_machine() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert {path.name for path in pages} >= {"README.md", "results.md", "claims.md"}
    lines = {path.name: iter(API.sub("", path.read_text()).splitlines()) for path in pages}
    assert {name: found for name, text in lines.items() if (found := elsewhere(text))} == {}


@pytest.mark.parametrize("text", ["python b.py /data/m", "--models=a=/x,b=c", "`~/m`", "/tmp/w"])
def test_such_folders_are_seen(text: str) -> None:
    assert elsewhere(iter([text])) == [text]


@pytest.mark.parametrize("text", ["out/q3", "2 / 3", "docs/results/a.json", "http://localhost/x", "24 MB/s", "and/or"])
def test_what_is_no_such_folder_is_let_pass(text: str) -> None:
    assert elsewhere(iter([text])) == []


def renamed(value: object) -> object:
    """A result as it is saved since widths have names."""
    if not isinstance(value, dict):
        return value
    found = {key: renamed(item) for key, item in value.items()}
    if "widths" in found:
        size = found.pop("group_size", 64)
        found["widths"] = [f"w{bits}g{size}" if isinstance(bits, int) else bits for bits in found["widths"]]
    for name in ("perplexity_uniform", "uniform"):
        if isinstance(found.get(name), dict):
            found[name] = {f"w{key}g64" if key.isdigit() else key: one for key, one in found[name].items()}
    return found


def test_named_widths_give_the_pages_that_bits_gave(maker: ModuleType) -> None:
    readme = importlib.import_module("readme_tables")
    files = maker.load(ROOT / "docs" / "results")
    named = {name: renamed(item) for name, item in files.items()}
    assert named != files
    assert maker.page(named) == maker.page(files)
    assert readme.best(named) == readme.best(files)


def test_widths_that_bits_do_not_tell_apart_go_by_their_names(maker: ModuleType) -> None:
    result = comparison(50.0, 40.0) | {"perplexity_uniform": {"w2g64": 600.0, "w2g32": 300.0, "Q4_K": 38.0}}
    result["settings"] = {**result["settings"], "widths": ["w2g64", "w2g32", "Q4_K"]}  # type: ignore[dict-item]
    text = maker.page({"compare_llama-mini_nearest": result})
    assert "all w2g64 600.00, all w2g32 300.00, all Q4_K 38.00" in text
    assert "| blocks, w2g64,w2g32,Q4_K | coopq | 0.2744 |" in text


def test_ours_stands_beside_autoround_at_equal_bits(maker: ModuleType) -> None:
    row = {"kl": 0.4, "same_top": 0.6, "perplexity": 44.0, "seconds": 370.0, "avg_bits": 3.0, "widths": "210 x 3"}
    peer = {"command": "python peer.py", "rows": [{**row, "plan": "AutoScheme, 3 bits"}]}
    own = {**row, "kl": 0.3, "plan": "auto, 3 bits", "written": "gptq, codes and scales learned", "kl_99": 2.0}
    files = {"autoround_smollm2-135m": peer, "real_smollm2-135m": {"command": "python ours.py", "rows": [own]}}
    text = maker.page(files)
    assert "| smollm2-135m | 3 | 0.400 | 0.300 | **-25%** | – |" in text
    plain = {**own, "kl": 0.2, "plan": "uniform w3g64"}
    beside = {**files, "real_smollm2-135m": {"command": "python ours.py", "rows": [own, plain]}}
    assert "| smollm2-135m | 3 | 0.400 | 0.300 | **-25%** | 0.200 |" in maker.page(beside)
    claims = maker.claims_page({**files, "compare_llama-mini_nearest": comparison(50.0, 40.0)})
    assert "| smollm2-135m | AutoRound, 200 steps | – | – | – | 44.00 | – |" in claims
    unequal = {**own, "avg_bits": 2.9}
    files["real_smollm2-135m"] = {"command": "python ours.py", "rows": [unequal]}
    assert "not equal: 3.000, 2.900" in maker.page(files)


def test_a_router_with_nothing_to_reach_is_still_told() -> None:
    readme = importlib.import_module("readme_tables")
    summary = {"beaten": 0, "weights": 24, "worse": 1, "verdicts": {"tie": 23}, "gap_closed_mean": 0.0}
    found = {"source": {"model": "m"}, "questions": 8, "training_questions": 8, "families": ["a"], "command": "c"}
    told = readme.real({**found, "summary": {**summary, "reach_closed": None}}, None)[1]
    assert "0% of the gap to the oracle. Made by" in told
    told = readme.real({**found, "summary": {**summary, "reach_closed": 0.5}}, None)[1]
    assert "0% of the gap to the oracle, 50% of what was reachable. Made by" in told


def test_the_number_of_families_that_a_router_learned_from_is_counted() -> None:
    routes = importlib.import_module("route_tables")
    gain = {"mean": 0.1, "low": 0.0, "high": 0.2}
    rows = [{"family": name, "questions": 9, "mean_gain": gain} for name in "abcdefg"]
    assert "a router trained on the other 6, mean gain" in routes.left_out_table(rows)[0]


def test_a_plan_that_leaves_much_of_its_budget_says_so() -> None:
    best = importlib.import_module("best_tables")
    cell = {"perplexity": 20.0, "interval": [19.0, 21.0], "budget": 3.5}
    item = {"model": "m", "rounding": "gptq", "uniform": {}, "budgets": [{**cell, "avg_bits": 3.25}, cell]}
    assert best.plans_row(item)[2:4] == ["20.00 [19.0, 21.0] (3.25 bits)", "20.00 [19.0, 21.0]"]


def test_jobs_of_an_earlier_state_are_named_with_what_differed() -> None:
    real = importlib.import_module("real_tables")
    jobs = {"a": {}, "smollm2-135m": {"earlier_state": "x"}, "b": {"earlier_state": "x"}, "c": {"earlier_state": "y"}}
    assert real.earlier(jobs) == " Of an earlier state of the command: SmolLM2-135M-Instruct, b (x); c (y)."
    assert real.earlier({"a": {}}) == ""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "results").glob("main_job_*.json")), ids=lambda path: path.stem
)
def test_a_main_job_promises_no_rows_that_it_has_not(path: Path) -> None:
    job = json.loads(path.read_text())
    promised = "one width for all" in job["title"]
    assert promised == any(row["plan"].startswith("uniform") for row in job["rows"])
    own = job["result"]["tuned"] and job["result"]["tuned"]["own"]
    assert own != 2048 or "earlier_state" in job  # what was the most


def test_the_title_of_a_main_job_promises_what_it_writes() -> None:
    titled = importlib.import_module("main_job").title_of
    told = "m to 3 bits: the command"
    assert titled("m", argparse.Namespace(avg_bits=3.0, no_uniform=True)) == told
    beside = ", and one width for all at the same rounding"
    assert titled("m", argparse.Namespace(avg_bits=3.0, no_uniform=False)) == told + beside


def test_latencies_that_were_measured_later_say_so() -> None:
    routes = importlib.import_module("route_tables")
    assert routes.timed_apart({}) == ""
    later = {"latency": {"command": "python b.py", "conditions": "One thread."}}
    told = " Latency was measured later than the rest. One thread. Made by `python b.py`."
    assert routes.timed_apart(later) == told


def test_latencies_measured_anew_leave_the_rest_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = importlib.import_module("demo_route_3bit")
    saved = {"command": "c", "pipelines": {"rag": 1}, "latency_ms": {"rag": 9}, "seconds": 3.0}
    (tmp_path / "r.json").write_text(json.dumps(saved))
    monkeypatch.setattr(three, "latencies", lambda model, count: {"rag": count})
    asked = argparse.Namespace(out=tmp_path / "r.json", model=tmp_path, latency_questions=2)
    found = three.timed_again(asked)
    assert {name: found[name] for name in saved} == {**saved, "latency_ms": {"rag": 2}}
    assert set(found) == {*saved, "latency", "latency_questions"}
