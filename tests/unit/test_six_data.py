"""The questions of the benchmark: more of them hold those that were asked before."""

import random

import six_data


def test_more_questions_begin_with_the_fewer_and_leave_the_randomness_after_them_alone() -> None:
    rows = [{"id": str(n), "question": f"Question {n}?"} for n in range(700)]
    drawn, after = {}, {}
    for each in (200, 600, 5000):
        rng = random.Random(six_data.SEED)
        drawn[each] = [row["id"] for row in six_data.draw(rows, {"7"}, rng, each, "nq")]
        after[each] = rng.random()
    assert [len(found) for found in drawn.values()] == [200, 600, 699]
    assert drawn[600][:200] == drawn[5000][:200] == drawn[200]
    assert len(set(drawn[5000])) == 699
    assert "7" not in drawn[5000]
    assert len(set(after.values())) == 1
