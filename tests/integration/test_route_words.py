"""What commands of the routing half print: the prompts, counts, and a model's text made harmless."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apportion.cli import route
from apportion.cli.base import app, emit
from apportion.route.ask.prompts import DEFAULT_PATH, load_prompts
from apportion.route.profile.preflight import Preflight

RUN = CliRunner()


def test_the_printed_prompts_are_a_file_to_begin_with(tmp_path: Path) -> None:
    found = RUN.invoke(app, ["prompts"])
    assert found.exit_code == 0
    (tmp_path / "mine.toml").write_text(found.stdout)
    assert load_prompts(tmp_path / "mine.toml").digest == load_prompts(DEFAULT_PATH).digest
    assert "answer_pattern" in found.stdout.split("[passage]")[0]


def test_an_index_says_what_it_left_out_and_what_no_search_finds(tmp_path: Path) -> None:
    lines = [{"text": "Bern"}, {"text": " "}, {"text": "?!"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = RUN.invoke(app, ["index", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "index")])
    assert "1 passages without text were left out, first: c.jsonl, line 2" in found.stdout
    assert "1 passages hold no word that can be searched for" in found.stdout


def test_control_characters_of_a_model_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    emit({}, as_json=False, text="Bern\x1b[2J\x07\rx\x9b2J\tand\nmore é 伯")
    assert capsys.readouterr().out == "Bern\ufffd[2J\ufffd\ufffdx\ufffd2J\tand\nmore é 伯\n"


def test_the_preflight_is_told_on_stderr_and_only_where_there_is_something(capsys: pytest.CaptureFixture[str]) -> None:
    route._say_preflight(Preflight(8, {}, (), ()))
    assert capsys.readouterr() == ("", "")
    route._say_preflight(Preflight(8, {}, ("cot: 8 of 8 answers are cut by max_tokens",), ("cot: so\x1b[2J",)))
    told = capsys.readouterr()
    assert told.out == ""
    assert "first 8 questions: cot: 8 of 8" in told.err
    assert "\x1b" not in told.err
