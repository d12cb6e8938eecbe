"""Texts are read as they are written: every character of a JSON string stays in it."""

import json

import pytest

from apportion.core.errors import InputError
from apportion.models.text import read_text


def test_line_separators_inside_json_strings_do_not_end_a_line(tmp_path):
    texts = ["one\u2028two", "three\u0085four", "five\u2029six"]
    path = tmp_path / "text.jsonl"
    path.write_text("\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), newline="")
    assert read_text(path) == "\n\n".join(texts)


def test_lines_without_a_text_are_named(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "whole"}\n{"body": 1}\n\n[2]\n{"text": 3}\n')
    with pytest.raises(InputError, match="line 2, 4, 5: no string field"):
        read_text(path)
