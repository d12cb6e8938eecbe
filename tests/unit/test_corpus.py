"""Files -> passages: formats, splitting, and errors that name every offender."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from apportion.core.errors import ArtifactError, InputError
from apportion.route.index.corpus import Passage, Skipped, read_corpus
from apportion.route.index.split import markdown_sections, split_text


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_jsonl_keeps_ids_and_fills_in_missing_ones(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"id": 7, "title": "T", "text": "a"}, "", {"text": "b"})
    assert list(read_corpus(path)) == [Passage("7", "T", "a"), Passage("c.jsonl:3", "", "b")]


def test_parquet_and_jsonl_give_the_same_passages(tmp_path: Path) -> None:
    rows = [{"id": str(n), "title": f"t{n}", "text": f"text {n}"} for n in range(5)]
    jsonl = write_lines(tmp_path / "c.jsonl", *rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert list(read_corpus(jsonl)) == list(read_corpus(tmp_path / "c.parquet"))


def test_markdown_is_cut_at_headings_but_not_inside_code(tmp_path: Path) -> None:
    text = "# Top\nintro\n```\n# no heading\n```\n## Sub\nbody\n# Next\n"
    (tmp_path / "d.md").write_text(text)
    found = list(read_corpus(tmp_path / "d.md"))
    assert [(one.title, one.text) for one in found] == [
        ("Top", "intro\n```\n# no heading\n```"),
        ("Top > Sub", "body"),
    ]
    assert found[1].id == "d.md:2"


def test_markdown_heading_levels_may_be_skipped() -> None:
    assert list(markdown_sections("# A\n### C\nx\n## B\ny", "doc")) == [("A > C", "x"), ("A > B", "y")]


def test_a_folder_is_read_in_order_with_ids_by_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "ignored.pdf").write_text("no")
    assert [one.id for one in read_corpus(tmp_path)] == ["a.txt", "sub/b.txt"]


def test_long_texts_are_split_at_paragraphs_and_numbered(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"id": "x", "text": "a" * 90 + "\n\n" + "b" * 90})
    assert [(one.id, one.text[0]) for one in read_corpus(path, max_chars=100)] == [("x#1", "a"), ("x#2", "b")]


def test_splitting_prefers_the_most_natural_place() -> None:
    assert split_text("One two. Three four. Five.", 21) == ["One two. Three four.", "Five."]
    assert split_text("abcdefghij", 4) == ["abcd", "efgh", "ij"]


def test_all_offending_lines_are_named_at_once_and_bounded(tmp_path: Path) -> None:
    good = {"id": "a", "text": "x"}
    bad = ['{"id": 1', [1, 2], {"id": "b"}, {"text": 5}, {"id": [], "text": "x"}, {"text": "  "}, good]
    path = write_lines(tmp_path / "c.jsonl", good, *bad, *[{"id": "z"}] * 30)
    with pytest.raises(InputError) as caught:
        list(read_corpus(path))
    message = str(caught.value)
    for line in (2, 3, 4, 5, 6, 8):
        assert f"line {line}:" in message
    assert "36 problems" in message
    assert "and 16 more" in message
    assert "id 'a' occurs twice" in message


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_corpus_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.jsonl").write_text(content)
    (tmp_path / "c.txt").write_text(content)
    for name in ("c.jsonl", "c.txt"):
        with pytest.raises(InputError, match="is empty"):
            list(read_corpus(tmp_path / name))


def test_unreadable_inputs_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        list(read_corpus(tmp_path / "absent.jsonl"))
    (tmp_path / "c.pdf").write_text("x")
    with pytest.raises(InputError, match=r"expected one of .*\.jsonl"):
        list(read_corpus(tmp_path / "c.pdf"))
    (tmp_path / "c.txt").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="byte 2 is not UTF-8"):
        list(read_corpus(tmp_path / "c.txt"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ArtifactError, match="as Parquet"):
        list(read_corpus(tmp_path / "c.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no corpus file"):
        list(read_corpus(tmp_path / "empty"))


def test_half_characters_are_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "\\ud800"}\n')
    with pytest.raises(InputError, match="line 1: holds half a character"):
        list(read_corpus(tmp_path / "c.jsonl"))


def test_one_empty_passage_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "c.jsonl", {"id": "a", "text": "x"}, {"id": "b", "text": " \n"}, {"id": "c", "text": "y"}
    )
    skipped = Skipped()
    assert [one.id for one in read_corpus(path, skipped=skipped)] == ["a", "c"]
    assert (skipped.count, skipped.places) == (1, ["c.jsonl, line 2"])
    write_lines(path, {"text": ""})
    with pytest.raises(InputError, match="corpus is empty, 1 passages have no text"):
        list(read_corpus(path))


def test_contents_json_and_csv_are_read_like_lines(tmp_path: Path) -> None:
    rows = [{"id": "1", "title": "T", "contents": 'a, "quoted"\nline'}, {"id": "2", "title": "", "contents": "b"}]
    lines = write_lines(tmp_path / "c.jsonl", *rows)
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text(lines.read_text())
    (tmp_path / "c.csv").write_text('id,title,contents\n1,T,"a, ""quoted""\nline"\n2,,b\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    wanted = [Passage("1", "T", 'a, "quoted"\nline'), Passage("2", "", "b")]
    for name in ("c.jsonl", "c.json", "lines.json", "c.csv", "c.parquet"):
        assert list(read_corpus(tmp_path / name)) == wanted


def test_bad_json_and_csv_name_their_rows(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[{"text": "x"}, 3, {"title": "no text"}]')
    with pytest.raises(InputError, match=r"item 2: is a JSON int.*item 3: has no text"):
        list(read_corpus(tmp_path / "c.json"))
    (tmp_path / "c.csv").write_text("id,text\n1,x\n2\n3,y,z\n")
    with pytest.raises(InputError, match=r"line 3: has not the 2 cells.*line 4: has not"):
        list(read_corpus(tmp_path / "c.csv"))
    (tmp_path / "c.csv").write_bytes(b"id,text\n1,\xff\n")
    with pytest.raises(InputError, match="no CSV in UTF-8"):
        list(read_corpus(tmp_path / "c.csv"))
