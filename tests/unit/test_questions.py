"""Questions with gold answers, and how answers are scored."""

import json
from pathlib import Path

import pytest

from apportion.core.errors import InputError
from apportion.route.profile.questions import Question, read_questions
from apportion.route.profile.scoring import Score, normalise, number_in, score


def test_questions_are_read_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(
        '{"question": "Q1?", "answers": ["a", 2]}\n{"id": 5, "dataset": "d", "question": "Q2?", "answer": "b"}\n'
    )
    assert read_questions(path) == [
        Question("1", "set", "Q1?", ("a", "2")),
        Question("5", "d", "Q2?", ("b",)),
    ]
    assert len(read_questions(path, limit=1)) == 1


def test_questions_without_answers_are_one_error_with_all_lines(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answers": []}, {"question": "ok?", "answers": ["x"]}, {"question": "Q?"}]
    rows += [{"question": "  ", "answers": ["x"]}, {"question": "Q?", "answers": [" ", None]}]
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InputError) as caught:
        read_questions(path)
    for place in ("line 1: no answers", "line 3: no answers", "line 4: no question", "line 5: no answers"):
        assert place in str(caught.value)
    assert "line 2" not in str(caught.value)


@pytest.mark.parametrize("field", ["id", "dataset", "question", "answers"])
def test_half_characters_are_refused_by_line(tmp_path: Path, field: str) -> None:
    row = {"id": "1", "dataset": "d", "question": "Q?", "answers": "a"} | {field: "x\udc00"}
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="line 1: holds half a character"):
        read_questions(tmp_path / "set.jsonl")


def test_an_id_may_occur_once_in_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": 1, "question": "Q?", "answers": ["a"]}\n' * 2)
    with pytest.raises(InputError, match="line 2: id '1' is already on line 1"):
        read_questions(path)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text("")
    with pytest.raises(InputError, match="no question"):
        read_questions(tmp_path / "set.jsonl")


@pytest.mark.parametrize(
    ("answer", "gold", "wanted"),
    [
        ("The Beatles", ["Beatles", "Fab Four"], Score(1.0, 1.0)),
        ("John Lennon of the Beatles", ["Beatles"], Score(0.4, 0.0)),
        ("", ["Beatles"], Score(0.0, 0.0)),
        ("42 apples", ["42"], Score(1.0, 1.0)),
        ("$1,000.00", ["1000"], Score(1.0, 1.0)),
        ("3 or 4", ["3"], Score(0.0, 0.0)),
        ("Yes.", ["yes"], Score(1.0, 1.0)),
        ("yes and no", ["yes"], Score(0.0, 0.0)),
        ("A", ["a"], Score(1.0, 1.0)),
        ("the", ["A"], Score(0.0, 0.0)),
    ],
)
def test_scores(answer: str, gold: list[str], wanted: Score) -> None:
    found = score(answer, gold)
    assert (found.f1, found.em) == pytest.approx((wanted.f1, wanted.em))


def test_normalising_and_numbers() -> None:
    assert normalise("An  Old-Fashioned, the  Cup!") == "oldfashioned cup"
    assert number_in("-3.5%") == -3.5
    assert number_in("none") is None


def test_golden_answers_json_and_csv(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('[{"id": 0, "question": "Who?", "golden_answers": ["A", "B"]}]')
    assert read_questions(tmp_path / "q.json") == [Question("0", "q", "Who?", ("A", "B"))]
    (tmp_path / "q.csv").write_text('id,dataset,question,answers\n,d,"Who, then?","[""A"", ""B""]"\n7,,Why?,[so]\n')
    found = read_questions(tmp_path / "q.csv")
    assert found == [Question("1", "d", "Who, then?", ("A", "B")), Question("7", "q", "Why?", ("[so]",))]
