"""The short answer that a decision carries: none where the model was cut off while it reasoned.

Also what a server does before it listens.
"""

import gc
from pathlib import Path

import pytest

from apportion.serve import Address, Upstream, create_app, run
from tests.routings import knowing_router, routing


def test_an_answer_that_was_cut_off_is_no_answer(tmp_path: Path) -> None:
    known, said = routing(tmp_path, knowing_router()), "First there are 12 and then"
    assert known.answer_of("cot", "How many?", said, "", cut=True) == ""
    assert known.answer_of("cot", "How many?", f"{said} 3 more.\nAnswer: 15", "", cut=False) == "15"


def test_what_is_there_at_the_start_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full collection of a process with torch in it stops every stream for a tenth of a second."""
    frozen: list[int] = []
    monkeypatch.setattr(run._Server, "run", lambda self, sockets: frozen.append(gc.get_freeze_count()))
    try:
        run.run(create_app(routing(tmp_path, knowing_router()), Upstream(Address("http://127.0.0.1:9/v1"))), [])
        assert frozen[0] > 10_000
    finally:
        gc.unfreeze()
