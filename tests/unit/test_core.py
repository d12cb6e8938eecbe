"""Files are whole or absent; logs say which line; seeds are named."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core import artifact
from apportion.core.artifact import digest_of, plain, read_json, write_bytes, write_json, write_manifest
from apportion.core.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactExistsError,
    ArtifactMismatchError,
    InputError,
    require_all,
)
from apportion.core.log import AppendLog, read_log
from apportion.core.seeds import derived_seed, stream


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ArtifactError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(ArtifactError, match="only finite"):
        write_json(tmp_path / "x.json", {"a": np.asarray([1.0, np.nan])})


def test_a_folder_without_a_manifest_is_not_complete(tmp_path):
    write_bytes(tmp_path / "a", b"1")
    with pytest.raises(ArtifactError, match="not complete"):
        artifact.read_manifest(tmp_path)
    write_manifest(tmp_path, {"kind": "test"}, ["a"])
    assert artifact.read_manifest(tmp_path)["kind"] == "test"
    write_bytes(tmp_path / "a", b"2")
    with pytest.raises(ArtifactCorruptError, match="differs from the manifest"):
        artifact.read_manifest(tmp_path)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)), max_size=8))
def test_a_log_returns_what_was_appended(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("log") / "log"
    with AppendLog(path, {"of": "test"}, resume=False) as log:
        for record in records:
            log.append(record)
    header, found, _ = read_log(path)
    assert header == {"of": "test"}
    assert found == records


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_log_cut_anywhere_in_its_last_line_loses_that_line_only(tmp_path, cut):
    path = tmp_path / "log"
    with AppendLog(path, {"h": 1}, resume=False) as log:
        log.append({"first": 1})
        log.append({"second": "x" * 30})
    path.write_bytes(path.read_bytes()[:-cut])
    with AppendLog(path, {"h": 1}, resume=True) as log:
        assert log.records == [{"first": 1}]
        log.append({"third": 3})
    assert read_log(path)[1] == [{"first": 1}, {"third": 3}]


def test_a_log_of_other_inputs_is_refused_naming_them(tmp_path):
    AppendLog(tmp_path / "log", {"model": "a", "text": "t"}, resume=False).close()
    with pytest.raises(ArtifactMismatchError, match="another model "):
        AppendLog(tmp_path / "log", {"model": "b", "text": "t"}, resume=True)
    with pytest.raises(ArtifactExistsError, match="--resume"):
        AppendLog(tmp_path / "log", {"model": "a", "text": "t"}, resume=False)


def test_all_offenders_are_reported_at_once():
    def refuse(text: str) -> None:
        raise InputError(text)

    with pytest.raises(InputError, match=r"(?s)2 values.*first.*second"):
        require_all(lambda: refuse("first"), lambda: None, lambda: refuse("second"))
    require_all(lambda: None)


def test_streams_are_named_and_stable():
    assert derived_seed(0, "a", 1) == 3805457466603685491
    assert stream(0, "a").random() != stream(0, "b").random()
    assert digest_of({"b": 1, "a": (1, 2)}) == digest_of({"a": [1, 2], "b": 1})
    assert plain(np.int64(3)) == 3
