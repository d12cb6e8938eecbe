"""Results name files, never the folders of the machine that made them."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from command_line import PROJECT, named, own_command, shown
from saved_plans import names_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/data/models/llama-mini", "llama-mini"),
        ("/data/models/llama-mini/", "llama-mini"),
        ("--text=/data/wiki.txt", "--text=wiki.txt"),
        ("a=/data/a,b=/data/b", "a=a,b=b"),
        ("../c4-sample.jsonl", "c4-sample.jsonl"),
        (str(PROJECT / "docs" / "results"), "docs/results"),
        ("docs/results", "docs/results"),
        ("train:1500", "train:1500"),
        ("0/16", "0/16"),
        ("2.25,2.5", "2.25,2.5"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
    ],
)
def test_a_word_keeps_what_is_no_folder_of_the_machine(word: str, expected: str) -> None:
    assert named(word) == expected


def test_the_own_command_is_that_of_the_projects_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/srv/apportion/benchmarks/best.py", "/data/qwen3-mini", "--methods", "auto --tune 60", "--out", "out"]
    monkeypatch.setattr("sys.argv", words)
    assert own_command() == "python benchmarks/best.py qwen3-mini --methods 'auto --tune 60' --out out"


def test_words_of_any_kind_are_shown() -> None:
    assert shown(["apportion", Path("/m/llama"), "--windows", 8]) == "apportion llama --windows 8"


def test_every_benchmark_that_saves_its_command_uses_this() -> None:
    saving = [path for path in BENCHMARKS.glob("*.py") if re.search(r"""["']command["']""", path.read_text())]
    assert {path.name for path in saving} >= {"ablations.py", "best.py", "gpu_compare.py", "reference.py"}
    assert [path.name for path in saving if "from command_line import" not in path.read_text()] == []


def test_saved_plans_are_read_with_and_without_named_widths() -> None:
    assert names_of("02", {"widths": ["w2g64", "w3g32", "Q4_K"]}) == ["w2g64", "Q4_K"]
    assert names_of("24", {"widths": [2, 4], "group_size": 128}) == ["w2g128", "w4g128"]


@pytest.mark.parametrize("name", ["command_line", "saved_plans", "saved_widths"])
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
