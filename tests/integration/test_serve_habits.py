"""Upstreams that refuse parts of a request: the server becomes ready, asks without them, and says what that costs."""

from typing import Any

import openai
import pytest

from apportion.serve import Address, Routing
from tests.integration.serving import ASKED, QUESTION, get, post, serving
from tests.integration.upstream_stub import Stub

WORDS = {  # OpenAI's, vLLM's and templates' own
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is.",
    "system": "System role not supported",
    "stop": "Unsupported parameter: 'stop' is not supported with this model.",
    "top_logprobs": "top_logprobs: Extra inputs are not permitted",
    "logprobs": "logprobs are not supported",
    "chat_template_kwargs": "Unrecognized request argument supplied: chat_template_kwargs",
}


def _asked(client: openai.OpenAI, **more: Any) -> dict[str, Any]:
    return client.chat.completions.create(**{**ASKED, **more}).model_dump()


@pytest.mark.parametrize("part", [*WORDS, "all"])
def test_a_refused_part_is_left_out_from_then_on(stub: Stub, known: Routing, part: str) -> None:
    stub.refused = WORDS if part == "all" else {part: WORDS[part]}
    with serving(stub, known) as client:
        status, said = get(client, "/ready")
        assert status == 200, said
        for model in ("auto", "rag"):
            assert _asked(client, model=model)["choices"][0]["message"]["content"]
        chunks = list(client.chat.completions.create(model="cot", messages=QUESTION, stream=True))
        assert chunks[-1].choices[0].finish_reason == "stop"
    for body in stub.bodies:
        assert not {*body, *(one["role"] for one in body["messages"])} & set(stub.refused)


def test_what_a_refusal_makes_weaker_is_said(stub: Stub, known: Routing) -> None:
    stub.refused = {"temperature": WORDS["temperature"]}
    with serving(stub, known) as client:
        drafted, forced = _asked(client), _asked(client, model="cot")
        for found in (drafted, forced):
            assert [one for one in found["apportion"]["weaker"] if "temperature" in one] == [
                "temperature is refused by the server, so answers are not greedy"
            ]
        with pytest.raises(openai.BadRequestError, match="temperature"):
            _asked(client, model="cot", temperature=0.7)  # the client's own wish is never dropped


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_is_told_one_limit_by_its_own_name(stub: Stub, known: Routing, key: str, stream: bool) -> None:
    if key == "max_completion_tokens":
        stub.refused = {"max_tokens": WORDS["max_tokens"]}
    asked: tuple[dict[str, Any], ...] = (
        {"max_tokens": 5, "max_completion_tokens": 3},
        {"max_tokens": 3, "max_completion_tokens": 5},
        {"max_completion_tokens": 3},
        {"max_tokens": 3},
        {"max_tokens": None, "max_completion_tokens": 3},
    )
    with serving(stub, known) as client:
        for limits in asked:
            for more in ({"model": "cot"}, {"n": 2}):  # by a pipeline, and passed on
                whole = {**ASKED, "stream": stream, **limits, **more}
                assert post(client, "/v1/chat/completions", whole)[0] == 200
        post(client, "/v1/chat/completions", {**ASKED, "n": 2, "max_tokens": None})
    *limited, free = [{name: one for name, one in body.items() if name.startswith("max_")} for body in stub.bodies]
    assert limited == [{key: 3}] * 2 * len(asked)
    assert free == {}


def test_the_limit_on_new_tokens_keeps_its_meaning(stub: Stub, known: Routing) -> None:
    stub.refused = {"max_tokens": WORDS["max_tokens"]}
    stub.reply = lambda messages: "four" * 20
    with serving(stub, known) as client:
        for asked in ({"model": "cot"}, {"messages": [{"role": "user", "content": "Thanks!"}]}, {"n": 1, "tools": []}):
            found = _asked(client, max_tokens=5, **asked)
            assert found["choices"][0]["message"]["content"] == "four" * 5
            assert found["choices"][0]["finish_reason"] == "length"
    assert [body["max_completion_tokens"] for body in stub.bodies[-3:]] == [5, 5, 5]


def test_a_system_prompt_that_is_refused_begins_the_first_turn(stub: Stub, known: Routing) -> None:
    stub.refused = {"system": WORDS["system"]}
    turns = [*QUESTION, {"role": "assistant", "content": "Berthold."}, {"role": "user", "content": "And when?"}]
    with serving(stub, known) as client:
        _asked(client, model="direct", messages=[{"role": "system", "content": "Be kind."}, *turns])
    sent = stub.bodies[0]["messages"]
    assert [one["role"] for one in sent] == ["user", "assistant", "user"]
    assert sent[0]["content"].startswith("Be kind.\n\nAnswer")
    assert sent[0]["content"].endswith(QUESTION[0]["content"])


def test_a_refusal_that_names_nothing_known_is_told(stub: Stub, known: Routing) -> None:
    stub.refused = {"messages": "no quota for this project"}
    with serving(stub, known) as client:
        status, said = get(client, "/ready")
    assert status == 503
    assert "no quota for this project" in said["reason"]


def test_an_upstream_that_comes_later_is_known_before_it_is_asked(
    stub: Stub, known: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apportion.serve.upstream.RETRIED_S", 0.0)
    url, stub.refused = stub.url, WORDS
    for messages in (QUESTION, [{"role": "user", "content": "Thanks!"}]):
        stub.url = "http://127.0.0.1:9/v1"
        with serving(stub, known) as client:
            assert get(client, "/ready")[0] == 503
            client.state.backend.address = Address(url)  # type: ignore[attr-defined]
            found = _asked(client, messages=messages, max_tokens=50)
            assert found["choices"][0]["message"]["content"]


@pytest.mark.parametrize("path", ["chat/completions", "embeddings"])
def test_an_upstream_that_comes_later_is_known_by_its_own_name(
    stub: Stub, known: Routing, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("apportion.serve.upstream.RETRIED_S", 0.0)
    with serving(Stub(url="http://127.0.0.1:9/v1"), known) as client:
        body = {"model": "tiny", "messages": QUESTION, "input": "Bern"}
        status, said = post(client, f"/v1/{path}", body)
        assert (status, said["error"]["code"]) == (503, "upstream_unavailable")
        assert get(client, "/v1/models/tiny")[0] == 503
        client.state.backend.address = Address(stub.url)  # type: ignore[attr-defined]
        assert post(client, f"/v1/{path}", body)[0] == 200
        assert client.models.retrieve("tiny").id == "tiny"
        assert post(client, "/v1/chat/completions", {**body, "model": "other"})[0] == 404


def test_an_alias_is_passed_on_as_the_name_of_an_upstream_that_comes_later(
    stub: Stub, known: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apportion.serve.upstream.RETRIED_S", 0.0)
    with serving(Stub(url="http://127.0.0.1:9/v1"), known) as client:
        client.state.backend.address = Address(stub.url)  # type: ignore[attr-defined]
        assert post(client, "/v1/embeddings", {"model": "auto", "input": "Bern"})[0] == 200
    assert [body["model"] for body in stub.embedded] == ["tiny"]


def test_an_upstream_that_comes_later_is_in_the_list(
    stub: Stub, known: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apportion.serve.upstream.RETRIED_S", 0.0)
    with serving(Stub(url="http://127.0.0.1:9/v1"), known) as client:
        assert "tiny" not in [one.id for one in client.models.list()]
        client.state.backend.address = Address(stub.url)  # type: ignore[attr-defined]
        assert "tiny" in [one.id for one in client.models.list()]
