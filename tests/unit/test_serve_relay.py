"""An upstream's stream on its way to a client: what went wrong in it reaches the client in OpenAI's shape."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from apportion.serve.controls import Controls
from apportion.serve.decision import Decided, Outcome
from apportion.serve.relay import NO_REASON, Relay

DECIDED = Decided("dec-1", 0.0, "auto", Controls(), "question", "direct", "router", "Who?")


def passed(
    *blocks: bytes, choices: int = 1, include_usage: bool = False, keeps_text: bool = False
) -> tuple[bytes, Outcome]:
    outcome = Outcome()
    relay = Relay(
        DECIDED,
        outcome,
        include_usage=include_usage,
        elapsed_ms=lambda: 1.0,
        choices=choices,
        keeps_text=keeps_text,
    )

    async def source() -> AsyncIterator[bytes]:
        for block in blocks:
            yield block

    async def run() -> bytes:
        return b"".join([block async for block in relay.events(source())])

    return asyncio.run(run()), outcome


@pytest.mark.parametrize("error", ["CUDA out of memory", {"message": "CUDA out of memory", "code": 500}])
def test_an_error_in_a_stream_has_openais_shape_whatever_its_own_was(error: Any) -> None:
    said, outcome = passed(b'data: {"choices": []}\n\n', b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    last = json.loads(said.strip().split(b"\n\n")[-1].removeprefix(b"data: "))
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["message"] == "upstream: CUDA out of memory"
    assert (outcome.status, outcome.error) == ("error", "upstream: CUDA out of memory")


def chunk(index: int, delta: Any, ended: str | None = None) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": ended}
    return b"data: " + json.dumps({"id": "up-1", "choices": [choice]}).encode() + b"\n\n"


def said_of(events: bytes, name: str = "content") -> dict[int, str]:
    """What reached the client as this field, by choice."""
    found: dict[int, str] = {}
    for one in events.strip().split(b"\n\n"):
        if one.startswith(b"data: {"):
            for choice in json.loads(one.removeprefix(b"data: ")).get("choices") or ():
                text = (choice["delta"] or {}).get(name) or ""
                found[choice["index"]] = found.get(choice["index"], "") + text
    return found


@pytest.mark.parametrize(
    ("texts", "said", "thought"),
    [
        ({0: ["<", "b>bold"], 1: ["Paris", "."]}, {0: "<b>bold", 1: "Paris."}, {0: "", 1: ""}),
        ({0: ["\n", "\nA"], 1: ["B", "C"]}, {0: "\n\nA", 1: "BC"}, {0: "", 1: ""}),
        (
            {0: ["<think>on", "e</thi", "nk>\n\nA"], 1: ["<think>t", "wo</think>", "B"]},
            {0: "A", 1: "B"},
            {0: "one", 1: "two"},
        ),
        ({0: ["A", "</think>"], 1: ["<thi", "nk>two</think>B"]}, {0: "A</think>", 1: "B"}, {0: "", 1: "two"}),
        ({0: ["<", "thi"], 1: ["", "B"]}, {0: "<thi", 1: "B"}, {0: "", 1: ""}),
    ],
)
@pytest.mark.parametrize("last_delta", [{}, None])
def test_every_choice_keeps_its_own_text_and_thinking(
    texts: dict[int, list[str]], said: dict[int, str], thought: dict[int, str], last_delta: Any
) -> None:
    blocks = []
    for turn in range(3):  # the choices' pieces come in turns
        blocks += [chunk(index, {"content": found[turn]}) for index, found in texts.items() if turn < len(found)]
    blocks += [chunk(index, last_delta, "stop") for index in texts]
    events, _ = passed(*blocks, b"data: [DONE]\n\n", choices=2)
    assert said_of(events) == said
    assert said_of(events, "reasoning_content") == thought


ROLE, TOKEN, LAST, DONE = (
    chunk(0, {"role": "assistant"}),
    chunk(0, {"content": "Bern"}),
    chunk(0, {}, "stop"),
    b"data: [DONE]\n\n",
)
MALFORMED = (
    b'data: {"choices": 5}\n\n',
    b'data: {"choices": [5]}\n\n',
    b'data: {"choices": [{"index": {}, "delta": {}}]}\n\n',
    b'data: {"choices": [{"index": 0, "delta": "Bern"}]}\n\n',
    b'data: {"choices": [{"index": 0, "delta": {"conte\n\n',
    b"data: Internal Server Error\n\n",
    b"data: [1]\n\n",
    b'data: {"object": "error", "message": "CUDA out of memory", "code": 500}\n\n',
)


def _check_failed(events: bytes, outcome: Outcome, before: dict[int, str]) -> None:
    """The client got what came before, then one error that every client raises, and no good end."""
    *good, last = events.strip().split(b"\n\n")
    assert all("choices" in json.loads(one.removeprefix(b"data: ")) for one in good)
    assert said_of(events) == before
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (outcome.status, outcome.error) == ("error", error["message"])


@pytest.mark.parametrize("together", [False, True], ids=["apart", "in one block"])
@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize("before", [0, 2, 3])
def test_what_no_client_can_read_is_an_error(malformed: bytes, before: int, together: bool) -> None:
    blocks = [*(ROLE, TOKEN, TOKEN)[:before], malformed, TOKEN, LAST, DONE]
    events, outcome = passed(*([b"".join(blocks)] if together else blocks))
    _check_failed(events, outcome, {0: "Bern" * (before - 1)} if before else {})


@pytest.mark.parametrize(
    "blocks",
    [[DONE], [ROLE, TOKEN], [ROLE, TOKEN, TOKEN[:30]], [b": still here\n\n"], []],
)
def test_a_stream_without_an_end_is_an_error(blocks: list[bytes]) -> None:
    events, outcome = passed(*blocks)
    events = events.removeprefix(b": still here\n\n")
    _check_failed(events, outcome, {0: "Bern" * (TOKEN in blocks)} if ROLE in blocks else {})
    assert "ended without its end" in outcome.error


@pytest.mark.parametrize(
    "blocks",
    [
        [ROLE, TOKEN, LAST, DONE],
        [ROLE, TOKEN, LAST],
        [ROLE, TOKEN, LAST, DONE.strip()],
        [ROLE, TOKEN, LAST.strip()],
        [ROLE, TOKEN, LAST, TOKEN[:30]],
        [b"data: \n\n", ROLE, TOKEN, b"data:\n\n", LAST, b"data:[DONE]\n\n"],
        [b'data: {"choices": [], "prompt_filter_results": []}\n\n', ROLE, TOKEN, LAST, DONE],
        [b'data: {"type": "ping"}\n\n', ROLE, b'data: {"type": "ping"}\n\n', TOKEN, LAST, DONE],
        [ROLE, TOKEN.replace(b"\n\n", b"\r\n\r\n"), b"id: 5\n" + LAST, DONE],
    ],
)
def test_a_stream_with_an_end_is_an_answer(blocks: list[bytes]) -> None:
    events, outcome = passed(*blocks)
    assert said_of(events) == {0: "Bern"}
    assert events.endswith(DONE)
    assert (outcome.status, outcome.finish) == ("ok", "stop")
    assert events.count(b'"decision_id"') == 1


@pytest.mark.parametrize("blocks", [[ROLE, DONE], [ROLE, TOKEN, DONE]])
def test_an_end_without_its_reason_is_an_end_and_that_is_said(blocks: list[bytes]) -> None:
    events, outcome = passed(*blocks)
    assert said_of(events) == {0: "Bern" * (TOKEN in blocks)}
    assert events.endswith(DONE)
    assert (outcome.status, NO_REASON in outcome.weaker) == ("ok", True)


OTHER, OTHER_LAST = chunk(1, {"content": "Bern"}), chunk(1, {}, "length")
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}\n\n'


@pytest.mark.parametrize("usage", [[], [USAGE]])
@pytest.mark.parametrize("blocks", [[TOKEN, LAST], [TOKEN, OTHER, LAST], [TOKEN, OTHER, OTHER_LAST, OTHER_LAST]])
def test_a_stream_that_lost_some_of_its_choices_is_an_error(blocks: list[bytes], usage: list[bytes]) -> None:
    events, outcome = passed(*blocks, *usage, choices=2)
    assert DONE not in events
    _check_failed(events, outcome, {0: "Bern"} | ({1: "Bern"} if OTHER in blocks else {}))
    assert "ended without its end" in outcome.error


@pytest.mark.parametrize("end", [[], [USAGE], [USAGE, DONE]])
def test_a_stream_is_whole_once_all_its_choices_are(end: list[bytes]) -> None:
    events, outcome = passed(TOKEN, OTHER, OTHER_LAST, LAST, *end, choices=2)
    assert said_of(events) == {0: "Bern", 1: "Bern"}
    assert (events.endswith(DONE), outcome.status) == (True, "ok")


def test_an_upstream_that_ends_itself_with_fewer_choices_is_believed_and_that_is_said() -> None:
    events, outcome = passed(TOKEN, LAST, DONE, choices=2, include_usage=True)
    assert (events.endswith(DONE), outcome.status) == (True, "ok")
    said = "the upstream did not say why 1 of 2 answers ended"
    assert said in outcome.weaker
    assert said in json.loads(events.split(b"\n\n")[-3].removeprefix(b"data: "))["apportion"]["weaker"]


def test_what_is_kept_of_a_text_is_of_the_first_choice_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [TOKEN, OTHER, *[TOKEN] * 9, OTHER_LAST, LAST, DONE]
    assert passed(*blocks, choices=2)[1].text is None
    assert passed(*blocks, choices=2, keeps_text=True)[1].text == "Bern" * 10
    monkeypatch.setattr("apportion.serve.relay.MAX_KEPT_CHARS", 10)
    assert passed(*blocks, choices=2, keeps_text=True)[1].text == "BernBernBe"


def test_our_usage_chunk_has_the_name_of_the_chunks_with_choices() -> None:
    first = b'data: {"id": "", "model": "", "object": "", "choices": [], "prompt_filter_results": []}\n\n'
    events, outcome = passed(first, ROLE, TOKEN, LAST, DONE, include_usage=True)
    last = json.loads(events.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert (last["choices"], last["id"]) == ([], json.loads(ROLE.removeprefix(b"data: "))["id"])
    assert last["apportion"]["weaker"] == list(outcome.weaker)
    assert events.count(b'"decision_id"') == 1


@pytest.mark.parametrize("count", [-5, 10**30, True, 1.5, "3", None])
def test_a_number_of_tokens_that_is_none_is_not_counted(count: Any) -> None:
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": count}}).encode()
    events, outcome = passed(ROLE, TOKEN, LAST, b"data: " + usage + b"\n\n", DONE)
    assert events.endswith(DONE)
    assert outcome.weaker == ("tokens are counted by events, since the upstream reports none",)
