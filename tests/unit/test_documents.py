"""Text in the forms in which people have it, and what is said of the rest."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.core.errors import InputError
from apportion.models.documents import read_documents
from apportion.models.mixture import read_mixture
from apportion.models.text import Windows, load_calibration, read_text, save_calibration, windows_of
from tests.tiny_models import make_tokenizer

ROWS = [{"text": "one, two"}, {"text": 'three "four"\nfive'}]
CHAT = [{"role": "user", "content": "How many nets?"}, {"role": "assistant", "content": "Three nets."}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


def tokenizer(*, template: str | None = TEMPLATE) -> Any:
    found = make_tokenizer()
    found.chat_template = template
    return found


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows in the form that the file's name says."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = {
        "jsonl": lambda: "\n".join(map(json.dumps, rows)),
        "json": lambda: json.dumps(rows),
        "csv": lambda: 'id,text\n1,"one, two"\n2,"three ""four""\nfive"\n',
        "tsv": lambda: 'id\ttext\n1\tone, two\n2\t"three ""four""\nfive"\n',
    }[kind]()
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_the_same_rows_in_every_form(name: str, tmp_path: Path) -> None:
    assert read_text(write(tmp_path / name, ROWS)) == "\n\n".join(row["text"] for row in ROWS)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_cell_may_be_a_whole_book(kind: str, tmp_path: Path) -> None:
    book = "the smith mends nets. " * 10_000
    (tmp_path / f"a.{kind}").write_text(f'text\n"{book}"\n')
    assert read_text(tmp_path / f"a.{kind}") == book


def test_a_mark_at_the_beginning_and_other_line_ends_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_text(path) == "one\ntwo\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"PK\x03\x04\x00\x00", "holds bytes of zero, so it is no text"),
        ("a.txt", "text".encode("utf-16"), "is UTF-16 text"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text"),
        ("a.txt.gz", b"no archive", "is no whole gzip archive"),
        ("a.json", b'{"text": "one"}\n{"text": "two"}\n', "name it .jsonl"),
        ("a.json", b'[{"text": "one"}, {"body": 1}, 7]', "element 2, 3: no string field 'text', and no 'messages'"),
        ("a.csv", b"id,body\n1,one\n", "row 1: no string field"),
        ("a.parquet", b"PAR2", "is no Parquet file"),
        ("a.csv.gz", gzip.compress(b"id,body\n1,one\n", mtime=0), "row 1: no string field"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1: a message without role and content"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\\ud83d"}', "line 2: holds half a character"),
        ("a.json", b'["one", "\\udc00 two"]', "element 2: holds half a character"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "line 1: holds half a character"),
        ("a.jsonl", b'{"text": "one"}\n{"a": 1}\n{"text": "cu', "line 2: no string field"),
        ("a.jsonl", b'{"text": "one"}\n{"a": 1}\n{"text": "cu', "line 3: is no JSON (cut?)"),
    ],
)
def test_what_is_no_text_is_refused_with_a_remedy(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as refused:
        read_text(tmp_path / name)
    assert message in str(refused.value)
    assert refused.value.remedy


def test_conversations_are_put_through_the_models_template(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    shared = [{"from": "human", "value": "How many nets?"}, {"from": "gpt", "value": "Three nets."}]
    path.write_text(json.dumps({"messages": CHAT}) + "\n" + json.dumps({"conversations": shared}) + "\n")
    assert read_documents(path)[0] == read_documents(path)[1]
    one = "<bos>[user] How many nets?\n[assistant] Three nets.\n"
    assert read_text(path, tokenizer()) == one + one  # nothing between them that the model would never see
    with pytest.raises(InputError, match="holds conversations, and the model's tokenizer has no chat template"):
        read_text(path, tokenizer(template=None))
    with pytest.raises(InputError, match="the chat template refuses a conversation of user, assistant: no"):
        read_text(path, tokenizer(template="{{ raise_exception('no') }}"))


def test_every_window_begins_as_it_is_asked_for(text_file: Path) -> None:
    own = make_tokenizer()
    plain, marked = (windows_of(text_file, own, 24, bos=bos) for bos in (False, True))
    assert (marked[:, 0] == own.bos_token_id).all()
    assert (plain != own.bos_token_id).all()
    assert torch.equal(marked[:, 1:].flatten()[:200], plain.flatten()[:200])
    assert torch.equal(windows_of(text_file, own, 24), plain)  # as this tokenizer itself does
    text_file = text_file.parent / "begun.txt"
    text_file.write_text("<bos>the smith mends nets. " * 40)
    once = windows_of(text_file, own, 24, bos=True)[0]
    assert (once[:2] == own.bos_token_id).tolist() == [True, False]  # not doubled where the text has it
    own.bos_token = None
    with pytest.raises(InputError, match="no beginning-of-text token"):
        windows_of(text_file, own, 24, bos=True)


def test_what_a_window_begins_with_is_kept_with_it(text_file: Path, tmp_path: Path) -> None:
    found = read_mixture(text_file, make_tokenizer(), 24).draw(2, seed=0)
    assert found.bos is False
    save_calibration(found, tmp_path / "windows.safetensors")
    assert load_calibration(tmp_path / "windows.safetensors").bos is False
    save_calibration(Windows(found.windows, "test"), tmp_path / "windows.safetensors")
    assert load_calibration(tmp_path / "windows.safetensors").bos is None
