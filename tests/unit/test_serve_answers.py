"""The short answer that a decision carries: none where the model was cut off while it reasoned."""

from pathlib import Path

from tests.routings import knowing_router, routing


def test_an_answer_that_was_cut_off_is_no_answer(tmp_path: Path) -> None:
    known, said = routing(tmp_path, knowing_router()), "First there are 12 and then"
    assert known.answer_of("cot", "How many?", said, "", cut=True) == ""
    assert known.answer_of("cot", "How many?", f"{said} 3 more.\nAnswer: 15", "", cut=False) == "15"
