"""Chunks that are compared with one that was read, in place of being read: nothing passes that reading would refuse."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve import relay as module
from apportion.serve import shape
from apportion.serve.controls import Controls
from apportion.serve.decision import Decided, Outcome
from apportion.serve.events import data_of, object_in
from apportion.serve.relay import SHAPES, Relay
from apportion.serve.shape import shape_of

DECIDED = Decided("dec-1", 0.0, "auto", Controls(), "question", "direct", "router", "Who?")
BEFORE, AFTER = b'data: {"id": "up-1", "choices": [{"index": 0, "delta": {"content": "', b'"}, "finish_reason": null}]}'
LAST = b'data: {"id": "up-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def chunk(text: bytes) -> bytes:
    return BEFORE + text + AFTER + b"\n\n"


def passed(block: bytes, shapes: int, size: int | None = None) -> tuple[bytes, Outcome, int]:
    """The client's bytes, the outcome and how many answers were found in the bytes, in blocks of a size."""
    outcome = Outcome()
    relay = Relay(DECIDED, outcome, include_usage=True, elapsed_ms=lambda: 1.0)
    relay._shapes = shapes

    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(block), size or len(block)):
            yield block[at : at + (size or len(block))]

    async def run() -> bytes:
        return b"".join([one async for one in relay.events(source())])

    return asyncio.run(run()), outcome, relay._pieces


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is read as JSON."""
    found: list[bytes] = []

    def noting(data: bytes) -> Any:
        found.append(data)
        return object_in(data)

    monkeypatch.setattr(module, "object_in", noting)
    monkeypatch.setattr(shape, "object_in", noting)
    return found


PIECES = (
    b"Bern", b"", b" ", b"\\", b'"', b'\\"', b"\\\\", b"\\n", b"\\u00e9", b"\\ud83d", b"\\u00e", b"\\x",
    "é日本😀".encode(), b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "é".encode()[:1], "日".encode()[1:],
    b"\n", b"\n\n", b"\r", b"\r\n\r\n", b"\x00", b"\t", b"\x1f", b"\x7f", b"{", b"}", b'"}}]}', b"data: ",
    b"data: [DONE]", AFTER, BEFORE, b"the text of a chunk", b"<think>", b'", "content": 5, "role": "',
    b'"}, "finish_reason": "stop"}], "a": [{"b": {"c": "', b'"}, "finish_reason": null}], "choices": 5, "a": "',
    b'"}, "finish_reason": null}], "error": {"message": "busy',
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join) | st.binary(max_size=4)


@given(st.lists(TEXTS, max_size=6), st.sampled_from([None, 7, 40, 150]))
def test_what_is_compared_passes_as_what_is_read(texts: list[bytes], size: int | None) -> None:
    block = b"".join(chunk(text) for text in (b"", b"Bern", b" ", *texts)) + LAST
    assert passed(block, SHAPES, size) == passed(block, 0, size)


def test_what_fits_is_what_differs_in_its_text_alone() -> None:
    known = shape_of(chunk(b"Bern"))
    assert known is not None
    begins = [bytes([one, two]) for one in range(256) for two in range(256)]
    longer = [begun + rest for begun in begins[0xE000:] for rest in (b"\x80", b"\xbf\x8f", b"\x80\xc0")]
    escapes = [b"\\u" + "".join(digits).encode() for length in range(6) for digits in product("0aFg", repeat=length)]
    for text in [*begins, *longer, *escapes]:
        one = chunk(text)
        found = object_in(data_of(one)) if b"\n" not in text and b"\r" not in text else None
        if known.fits(one):
            assert found is not None, text
            found["choices"][0]["delta"]["content"] = "Bern"
            assert found == object_in(data_of(chunk(b"Bern"))), text
        else:
            strange = text.decode("utf-8", "replace").count("�") > 0  # such as lone surrogates, which are read
            assert found is None or strange or b'"' in text, text


@pytest.mark.parametrize("text", [b"Bern", "日本 😀".encode(), b'\\"\\n\\u00e9', b""])
def test_chunks_of_one_shape_are_read_once(reads: list[bytes], text: bytes) -> None:
    block = b"".join(map(chunk, (b"", b"A", b"B", *([text] * 200)))) + LAST
    events, outcome, pieces = passed(block, SHAPES)
    assert events.count(chunk(text)) >= 200
    assert (outcome.status, pieces) == ("ok", 204)
    assert len(reads) <= 6


def test_chunks_that_each_have_another_shape_cost_no_more_than_their_reading(reads: list[bytes]) -> None:
    others = [chunk(b"A").replace(b"up-1", b"up-%d" % number) for number in range(200)]
    events, _, _ = passed(b"".join(others) + LAST, SHAPES)
    assert all(one in events for one in others[2:])
    assert len(reads) <= len(others) + 2 + SHAPES  # those two: the end, and what is left after it


def test_a_shape_that_changes_now_and_then_is_taken_anew(reads: list[bytes]) -> None:
    others = [chunk(b"A").replace(b"up-1", b"up-%d" % (number // 10)) for number in range(600)]
    events, _, _ = passed(b"".join(others) + LAST, SHAPES)
    assert all(one in events for one in others[10:])
    assert len(reads) <= 3 + 2 * 60


@pytest.mark.parametrize(
    "one",
    [
        b'data: {"choices": [{"delta": {"role": "assistant"}}]}',
        b'data: {"choices": [{"delta": {}}], "usage": {"content": "Bern"}}',
        b'data: {"content": "Bern", "choices": [{"delta": {"content" : "Basel"}}]}',
        b'data: {"choices": [{"delta": {"content": "Bern"}, "delta": {"content": null}}]}',
        b'data: {"choices": [{"delta": {"content": "Bern", "content": "Basel"}}]}',
        b'data: {"choices": [{"delta": {"a": "\\"content\\": ", "b": "Bern"}}]}',
        b'data: {"choices": [{"delta": {"a\\"content": "Bern\x1f"}}]}',
        b'data: {"choices": [{"delta": {"content": "the text of a chunk"}}]}',
        b'data: {"choices": [{"delta": {"content": "Bern"}}]',
        b'data: {"choices": [{"delta": {"content": "Bern',
        b'data: {"choices": 5, "a": {"content": "Bern"}}',
        b': {"choices": [{"delta": {"content": "Bern"}}]}',
    ],
)
def test_a_text_that_cannot_be_told_apart_makes_no_shape(one: bytes) -> None:
    assert shape_of(one + b"\n\n") is None


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("spaces", [None, (",", ":")])
def test_a_shape_is_that_of_any_writer(name: str, spaces: Any) -> None:
    def written(text: str) -> bytes:
        choices = [{"index": 0, "delta": {"role": "assistant", name: text}, "logprobs": None}]
        return b"event: chunk\ndata: " + json.dumps({"id": "up-1", "choices": choices}, separators=spaces).encode()

    known = shape_of(written("Bern"))
    assert known is not None
    assert known.fits(written('Zähringen said:\n\t"1191"\\ 😀'))
    assert not known.fits(written("Bern").replace(b'"logprobs"', b'"error"'))
    assert not known.fits(written("Bern").replace(b"up-1", b"up-2"))
    assert not known.fits(written("Bern") + b"\n\n")
    assert not known.fits(known.before + known.after[1:]), "one quotation mark is not two"
