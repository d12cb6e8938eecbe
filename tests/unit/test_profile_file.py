"""Profiles on disk: what is written is read; what is missing is dropped visibly; bad rows are named."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from apportion.core.errors import ArtifactCorruptError, ArtifactError, InputError
from apportion.route.ask.source import ProfileSource
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.file import read_profile, write_profile
from apportion.route.profile.profile import Outcome

SOURCE = ProfileSource(model="m", corpus="c", prompts="p", k=5, created="now")


def outcomes(n: int = 3) -> list[Outcome]:
    return [
        Outcome(
            dataset="d",
            question_id=str(i),
            question=f"q{i}",
            answers=("a", "b"),
            strategy=strategy,
            answer="a",
            f1=(i + s) % 5 / 4,
            em=0.0,
            prompt_tokens=10 * (s + 1),
            completion_tokens=i,
            latency_ms=1.0 + s,
            retrieval_ms=0.5,
            features={"score_top": float(i), "score_gap": None if i == 0 else 1.0},
        )
        for i in range(n)
        for s, strategy in enumerate(STRATEGIES)
    ]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.parquet", outcomes(), SOURCE)
    profile = read_profile(tmp_path / "p.parquet")
    assert profile.ids == ("0", "1", "2")
    assert profile.source == SOURCE
    assert profile.strategies == STRATEGIES
    assert profile.has_latency
    assert profile.feature_names == ("score_top", "score_gap")
    np.testing.assert_array_equal(profile.quality[1], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(profile.tokens[2], [12, 22, 32, 42])
    np.testing.assert_array_equal(profile.features, [[0, np.nan], [1, 1], [2, 1]])
    np.testing.assert_array_equal(profile.retrieval_ms, [0.5, 0.5, 0.5])
    assert profile.dropped == ("feature draft_nll_mean: not measured",)


def test_quality_can_be_exact_match(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.parquet", outcomes(), SOURCE)
    assert read_profile(tmp_path / "p.parquet", quality="em").quality.max() == 0
    with pytest.raises(InputError, match="expected f1 or em"):
        read_profile(tmp_path / "p.parquet", quality="bleu")


def test_a_failed_answer_makes_its_question_incomplete(tmp_path: Path) -> None:
    rows = outcomes()
    rows[2] = replace(rows[2], f1=None, prompt_tokens=None, completion_tokens=None, error="timeout")
    write_profile(tmp_path / "p.parquet", rows, SOURCE)
    profile = read_profile(tmp_path / "p.parquet")
    assert profile.complete.tolist() == [False, True, True]
    whole = profile.only_complete()
    assert whole.ids == ("1", "2")
    assert any("1 of 3 questions" in reason for reason in whole.dropped)


def test_strategies_that_were_not_recorded_restrict_the_choice(tmp_path: Path) -> None:
    rows = [row for row in outcomes() if "cot" in row.strategy]
    write_profile(tmp_path / "p.parquet", rows, SOURCE)
    profile = read_profile(tmp_path / "p.parquet")
    assert profile.strategies == ("cot", "rag+cot")
    assert profile.complete.all()
    assert sum(reason.startswith("strategy ") for reason in profile.dropped) == 2


def test_missing_latency_is_allowed_and_said(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.parquet", [replace(row, latency_ms=None) for row in outcomes()], SOURCE)
    profile = read_profile(tmp_path / "p.parquet")
    assert not profile.has_latency
    assert any(reason.startswith("latency") for reason in profile.dropped)


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    rows = outcomes()
    rows[0] = replace(rows[0], strategy="think")
    rows[1] = replace(rows[1], f1=1.5)
    rows[3] = replace(rows[2])
    write_profile(tmp_path / "p.parquet", rows, SOURCE)
    with pytest.raises(InputError) as caught:
        read_profile(tmp_path / "p.parquet")
    assert "row 0: strategy 'think'" in str(caught.value)
    assert "row 1: f1 1.5" in str(caught.value)
    assert "row 3: d/0/cot is there twice" in str(caught.value)


def test_costs_that_cannot_be_are_named(tmp_path: Path) -> None:
    rows = outcomes()
    wrong = ({"cached_tokens": -5}, {"cached_tokens": 10**9}, {"retrieval_ms": -1.0}, {"retrieval_ms": math.inf})
    rows[: len(wrong)] = [replace(row, **costs) for row, costs in zip(rows, wrong, strict=False)]
    write_profile(tmp_path / "p.parquet", rows, SOURCE)
    with pytest.raises(InputError) as caught:
        read_profile(tmp_path / "p.parquet")
    for number, said in enumerate(
        ("cached_tokens -5", "cached_tokens 1000000000", "retrieval_ms -1", "retrieval_ms inf")
    ):
        assert f"row {number}: {said}" in str(caught.value)


def test_a_loss_that_is_not_finite_was_not_measured(tmp_path: Path) -> None:
    rows = [replace(row, draft_nll=math.inf if row.question_id == "1" else 0.5, features={}) for row in outcomes()]
    write_profile(tmp_path / "p.parquet", rows, SOURCE)
    profile = read_profile(tmp_path / "p.parquet")
    loss = profile.features[:, profile.feature_names.index("draft_nll_mean")]
    assert np.isnan(loss).tolist() == [False, True, False]


def test_files_that_are_no_profile_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        read_profile(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ArtifactCorruptError):
        read_profile(tmp_path / "text.parquet")
    with pytest.raises(InputError, match="no outcome"):
        write_profile(tmp_path / "p.parquet", [], SOURCE)


def test_a_feature_cannot_take_the_name_of_a_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="f1"):
        write_profile(tmp_path / "p.parquet", [replace(outcomes()[0], features={"f1": 1.0})], SOURCE)


def test_a_profile_that_cannot_be_read_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    def broken(_: Path) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "p.parquet"
    path.write_bytes(b"x")
    monkeypatch.setattr(parquet, "read_table", broken)
    with pytest.raises(ArtifactError, match="cannot be read: Input/output error"):
        read_profile(path)


def _rewritten(path: Path, changes: dict[str, list[object]], meta: bytes | None = None) -> Path:
    """A profile with other columns and other metadata, as another program would have written it."""
    write_profile(path, outcomes(), SOURCE)
    table = parquet.read_table(path)
    for name, values in changes.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    metadata = table.schema.metadata if meta is None else {b"apportion": meta}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_columns_and_metadata_of_other_types_are_refused_all_at_once(tmp_path: Path) -> None:
    changes: dict[str, list[object]] = {
        "question": list(range(12)),
        "question_id": [["a", str(i)] for i in range(12)],
        "answer": [1.5] * 12,
        "f1": ["1"] * 12,
    }
    with pytest.raises(InputError) as found:
        read_profile(_rewritten(tmp_path / "p.parquet", changes, b"not ours"))
    for said in (
        "metadata apportion: holds b'not ours', expected a JSON object",
        "column question: holds 0, expected texts",
        "column question_id: holds ['a', '0'], expected a text or number each",
        "column answer: holds 1.5, expected texts",
        "column f1: holds '1', expected numbers",
    ):
        assert said in found.value.problem


@pytest.mark.parametrize("meta", [b"[1]", b"\xff\xfe", b'{"k": "5", "model": 7}', b'{"k": true}', b'{"model": null}'])
def test_metadata_that_another_program_wrote_is_refused_by_name(tmp_path: Path, meta: bytes) -> None:
    with pytest.raises(InputError, match="metadata apportion"):
        read_profile(_rewritten(tmp_path / "p.parquet", {}, meta))


def test_ids_may_be_numbers_and_texts_may_lack(tmp_path: Path) -> None:
    changes: dict[str, list[object]] = {
        "question_id": [i // 4 for i in range(12)],
        "question": pa.array([None] * 12, pa.string()).to_pylist(),
    }
    profile = read_profile(_rewritten(tmp_path / "p.parquet", changes, b'{"other": [1]}'))
    assert profile.ids == ("0", "1", "2")
    assert profile.question == ("", "", "")
    assert profile.different == 3
