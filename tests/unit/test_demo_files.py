"""Files and texts of the demonstration: corpus, questions, calibration and held-out text."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from apportion.demo import (
    calibration_text,
    heldout_text,
    prompts_path,
    world,
    write_corpus,
    write_questions,
)
from apportion.demo.dialogues import PIPELINES, completion_text, prompt_text, prompts


def test_importing_the_world_is_light() -> None:
    code = "import sys, apportion.demo; print(any(n in sys.modules for n in ('torch', 'transformers')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_corpus_and_questions_are_written(tmp_path: Path) -> None:
    passages = write_corpus(tmp_path / "corpus.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert len(lines) == passages == len(world().corpus())
    assert set(lines[0]) == {"id", "title", "text"}
    ids = {line["id"] for line in lines}
    count = write_questions(tmp_path / "questions.jsonl", "validation", limit=120)
    asked = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len(asked) == count == 120
    assert {"id", "dataset", "question", "answers", "split", "known", "hops", "gold"} <= set(asked[0])
    assert all(set(question["gold"]) <= ids for question in asked)


def test_texts_are_the_same_each_time_and_of_the_size_asked_for() -> None:
    text = calibration_text(20_000)
    assert text == calibration_text(20_000)
    assert 20_000 <= len(text) < 24_000
    assert text != heldout_text(20_000)


def test_calibration_text_names_nobody_of_the_test_split() -> None:
    text = calibration_text(60_000)
    assert not [name for name in world().unseen["test"].names if name in text]


def test_prompts_file_has_the_agreed_schema() -> None:
    table = tomllib.loads(prompts_path().read_text())
    assert set(table) == {"passage", *PIPELINES}
    for name in PIPELINES:
        assert set(table[name]) <= {"system", "user", "thinking", "max_tokens", "answer_pattern"}
        assert ("{passages}" in table[name]["user"]) == ("rag" in name)


def test_answer_patterns_find_the_answer_in_a_completion() -> None:
    for name in PIPELINES:
        written = completion_text(name, "Vera Hopl", "Some steps. 1 + 2 = 3.").removesuffix("<|end|>")
        found = re.findall(prompts()[name].answer_pattern, written)
        assert found[-1].strip() == "Vera Hopl"


def test_a_prompt_shows_its_passages() -> None:
    passage = world().corpus()[0]
    assert f"{passage.title}: {passage.text}\n" in prompt_text("rag", "Where?", [passage])
    assert passage.text not in prompt_text("cot", "Where?", [passage])
