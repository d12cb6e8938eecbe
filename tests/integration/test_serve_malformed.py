"""Upstreams that answer what is no answer, and answers that look like none: what clients are told, and the log."""

import json
import urllib.error
import urllib.request
from typing import Any

import openai
import pytest

from apportion.serve import Address, Routing, Timeouts
from apportion.serve.relay import Relay
from tests.integration.serving import ASKED, QUESTION, get, logged, serving
from tests.integration.upstream_stub import Json, Stub

TOKENS = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _answer(message: Json, **more: Any) -> Json:
    choice = {"index": 0, "message": message, "finish_reason": "stop", **more.pop("choice", {})}
    answer = {"id": "up-1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
    return {**answer, "usage": TOKENS, **more}


def _said(client: openai.OpenAI, *, stream: bool, **asked: Any) -> tuple[int, list[Json]]:
    """Status and JSON of what came: one body, or the events."""
    body = json.dumps({**ASKED, **asked, "stream": stream}).encode()
    request = urllib.request.Request(f"{client.base_url}chat/completions", body, {"content-type": "application/json"})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        status, kind, text = answer.status, answer.headers["content-type"], answer.read().decode()
    if not kind.startswith("text/event-stream"):
        return status, [json.loads(text)]
    events = [one.removeprefix("data: ") for one in text.strip().split("\n\n") if one.startswith("data: ")]
    return status, [json.loads(one) for one in events if one != "[DONE]"]


NO_ANSWERS: tuple[Any, ...] = (
    {},
    {"choices": []},
    {"choices": None, "usage": TOKENS},
    {"choices": [{"message": None}]},
    {"choices": [{"index": 0, "finish_reason": "stop"}]},
    {"choices": [{"message": {}}]},
    {"object": "error", "message": "CUDA out of memory", "code": 500},
    {"choices": 5},
    {"choices": [5]},
    {"choices": [{"message": "Bern"}]},
    [],
    "hello",
)


@pytest.mark.parametrize("said", NO_ANSWERS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_good_status_without_an_answer_is_an_error(stub: Stub, known: Routing, said: Any, stream: bool) -> None:
    with serving(stub, known) as client:
        stub.fail = (200, said)
        for number, asked in enumerate(({"model": "cot"}, {"model": "auto"}, {"n": 2}), 1):
            status, (found,) = _said(client, stream=stream, **asked)
            assert status == 502, found
            assert set(found["error"]) == {"message", "type", "param", "code"}
            newest = logged(client, number)[0]
            assert (newest["status"], newest["error"]) == ("error", found["error"]["message"])


def test_the_words_of_an_error_are_told_whatever_its_shape(stub: Stub, known: Routing) -> None:
    with serving(stub, known) as client:
        stub.fail = (200, {"object": "error", "message": "CUDA out of memory", "code": 500})
        assert _said(client, stream=False)[1][0]["error"]["message"] == "upstream: CUDA out of memory"


SECRET = "sk-of-the-upstream"
TELLING: tuple[tuple[int, Any], ...] = (
    (500, {"error": {"message": f"bad key {SECRET}", "code": SECRET}}),
    (500, {"error": {"message": "x" * (500 - len(SECRET) // 2) + SECRET}}),
    (500, "x" * (300 - len(SECRET) // 2) + SECRET),
    (200, {"key": SECRET}),
    (200, f'"{SECRET}"'),
)


@pytest.mark.parametrize("said", TELLING)
@pytest.mark.parametrize("stream", [False, True])
def test_the_key_is_in_no_error_however_it_is_told(stub: Stub, known: Routing, said: Any, stream: bool) -> None:
    with serving(stub, known) as client:
        client.state.backend.address = Address(stub.url, key=SECRET)  # type: ignore[attr-defined]
        stub.fail = said
        status, (found,) = _said(client, stream=stream, model="direct")
    assert status == 502
    assert SECRET[:6] not in str(found), found


@pytest.mark.parametrize("said", [{"error": {"message": f"bad key {SECRET}"}}, [SECRET], {"choices": SECRET}])
def test_the_key_is_in_no_error_of_a_stream(stub: Stub, known: Routing, said: Any) -> None:
    stub.raw = [b"data: " + json.dumps(said).encode() + b"\n\n"]
    with serving(stub, known) as client:
        client.state.backend.address = Address(stub.url, key=SECRET)  # type: ignore[attr-defined]
        _, events = _said(client, stream=True, model="direct")
    assert "[key]" in events[-1]["error"]["message"]
    assert SECRET not in str(events)


@pytest.mark.parametrize("stream", [False, True])
def test_a_null_error_is_none(stub: Stub, known: Routing, stream: bool) -> None:
    listed = [{"token": "Bern", "logprob": -0.01}]
    stub.fail = (
        200,
        _answer({"role": "assistant", "content": "Answer: Bern"}, error=None, choice={"logprobs": {"content": listed}}),
    )
    with serving(stub, known) as client:
        assert get(client, "/ready")[0] == 200, "the probe was answered so"
        for asked in ({"model": "cot"}, {"model": "auto"}, {"n": 2}):
            status, found = _said(client, stream=stream, **asked)
            assert status == 200
            part = "delta" if stream else "message"
            texts = [choice[part].get("content") or "" for one in found for choice in one["choices"]]
            assert "".join(texts) == "Answer: Bern"
        assert not any("draft" in one for one in logged(client, 3)[1]["weaker"]), "the draft succeeded"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": ""},
        {"role": "assistant"},
    ],
)
def test_what_is_passed_on_stays_as_the_upstream_answers_it(stub: Stub, known: Routing, message: Json) -> None:
    with serving(stub, known) as client:
        stub.fail = (200, _answer(message))
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        status, (found,) = _said(client, stream=False, tools=tools)
        assert (status, found["choices"][0]["message"]) == (200, message)
        assert logged(client)[0]["status"] == "ok"


def test_an_answer_in_one_piece_is_streamed_whole(stub: Stub, known: Routing) -> None:
    """Where the upstream streams nothing: log-probabilities stay, and calls are numbered as deltas must be."""
    listed = {"content": [{"token": "Bern", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    message = {"role": "assistant", "content": "Bern", "tool_calls": [CALL, {**CALL, "id": "c2"}]}
    with serving(stub, known) as client:
        stub.fail = (200, _answer(message, choice={"logprobs": listed}))
        with client.chat.completions.stream(model="auto", messages=QUESTION, logprobs=True) as chunks:  # type: ignore[arg-type]
            final = chunks.get_final_completion().choices[0]
    assert final.message.content == "Bern"
    assert [(call.id, call.function.name) for call in final.message.tool_calls or ()] == [("c1", "f"), ("c2", "f")]
    assert final.logprobs is not None
    assert [(one.token, one.logprob) for one in final.logprobs.content or ()] == [("Bern", -0.5)]


def _collect(chunks: Any, seen: list[Any]) -> None:
    for chunk in chunks:
        seen.append(chunk)


def _chunk(index: int, delta: Json, ended: str | None = None) -> bytes:
    choices = [{"index": index, "delta": delta, "finish_reason": ended}]
    return b"data: " + json.dumps({"id": "up-1", "model": "tiny", "created": 1, "choices": choices}).encode() + b"\n\n"


def test_choices_that_stream_together_stay_apart(stub: Stub, known: Routing) -> None:
    pieces = [(0, "<"), (1, "\n"), (0, "b>bold"), (1, "<think>two"), (0, "."), (1, "</think>\n\nParis")]
    stub.raw = [_chunk(index, {"content": text}) for index, text in pieces]
    stub.raw += [_chunk(0, {}, "stop"), _chunk(1, {}, "stop"), b"data: [DONE]\n\n"]
    with serving(stub, known) as client:
        _, found = _said(client, stream=True, n=2)
    said, thought = {0: "", 1: ""}, {0: "", 1: ""}
    for choice in (choice for one in found for choice in one["choices"]):
        said[choice["index"]] += choice["delta"].get("content") or ""
        thought[choice["index"]] += choice["delta"].get("reasoning_content") or ""
    assert (said, thought) == ({0: "<b>bold.", 1: "Paris"}, {0: "", 1: "two"})


@pytest.mark.parametrize(
    ("rest", "said", "before"),
    [
        (b'data: {"choices": [{"delta": {"conte\n\n', "no JSON object", 0),
        (b'data: {"choices": [{"delta": {"conte\n\n', "no JSON object", 2),
        (b'data: {"choices": 5}\n\n', "not of OpenAI's shape", 0),
        (b'data: {"choices": 5}\n\n', "not of OpenAI's shape", 2),
        (b"data: [DONE]\n\n", "ended without its end", 0),
    ],
)
def test_what_no_client_can_read_is_raised_by_clients(
    stub: Stub, known: Routing, rest: bytes, said: str, before: int
) -> None:
    stub.raw, seen = [_chunk(0, {"content": "Bern"})] * before + [rest], list[Any]()
    with serving(stub, known) as client:
        chunks = client.chat.completions.create(model="cot", messages=QUESTION, stream=True)  # type: ignore[arg-type]
        with pytest.raises(openai.APIError, match=said):
            _collect(chunks, seen)
        assert [one.choices[0].delta.content for one in seen] == ["Bern"] * before
        assert logged(client)[0]["status"] == "error"


@pytest.mark.parametrize("count", [-5, 10**30, True, "3"])
@pytest.mark.parametrize("model", ["auto", "cot"])
def test_numbers_of_tokens_that_are_none_are_not_counted(stub: Stub, known: Routing, model: str, count: Any) -> None:
    listed = {"content": [{"token": "Bern", "logprob": -0.01}]}
    used = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3}
    with serving(stub, known) as client:
        stub.fail = (
            200,
            _answer({"role": "assistant", "content": "Answer: Bern"}, usage=used, choice={"logprobs": listed}),
        )
        for stream in (False, True):
            assert _said(client, stream=stream, model=model)[0] == 200
        assert all(one["status"] == "ok" for one in logged(client, 2))
        assert get(client, "/metrics")[0] == 200


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours_is_told_and_logged_as_an_error(
    stub: Stub, known: Routing, monkeypatch: pytest.MonkeyPatch, late: bool, stream: bool
) -> None:
    def fault(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("a fault that nobody foresaw")

    stub.pause_s = 0.2 if late else 0.0
    monkeypatch.setattr(Relay, "_event", fault)
    monkeypatch.setattr("apportion.serve.answering.Answerer._decision", fault)
    with serving(stub, known, timeouts=Timeouts(keep_alive_s=0.01 if late else 60.0)) as client:
        status, found = _said(client, stream=stream, model="cot")
        assert status == (200 if stream else 500)
        assert found[-1]["error"]["code"] == "internal_error"
        assert logged(client)[0]["status"] == "error"


@pytest.mark.parametrize(("status", "told"), [(429, 429), (503, 502)])
@pytest.mark.parametrize("stream", [False, True])
def test_when_to_come_back_is_passed_on(stub: Stub, known: Routing, status: int, told: int, stream: bool) -> None:
    with serving(stub, known) as client:
        for said, waits in (("30", "30"), ("soon", "1"), (None, "1"), ("0", "1")):
            stub.fail, stub.headers = (
                (status, {"error": {"message": "slow down"}}),
                {"retry-after": said} if said else {},
            )
            with pytest.raises(openai.APIStatusError) as error:
                client.chat.completions.create(model="cot", messages=QUESTION, stream=stream)  # type: ignore[call-overload]
            assert error.value.status_code == told
            assert error.value.response.headers["retry-after"] == waits
