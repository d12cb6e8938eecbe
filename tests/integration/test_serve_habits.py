"""Upstreams that refuse parts of a request: the server becomes ready, asks without them, and says what that costs."""

from typing import Any

import openai
import pytest

from apportion.serve import Routing
from tests.integration.serving import ASKED, QUESTION, get, serving
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
