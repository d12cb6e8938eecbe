"""How an answer is made is the client's to say: what it is given was asked for with its own settings."""

from pathlib import Path
from typing import Any

import openai
import pytest

from apportion.serve import Routing
from tests.integration.serving import ASKED, QUESTION, serving
from tests.integration.upstream_stub import Stub
from tests.routings import looking_router, routing

DRAWN: tuple[dict[str, Any], ...] = (
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 0.2},
    {"top_p": 0.5},
    {"top_k": 40},
    {"min_p": 0.1, "temperature": 0.7},
    {"temperature": 0.7, "seed": 5},
)
LIKELIEST: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0},
    {"temperature": 0, "top_p": 0.3},
    {"top_p": 1, "top_k": -1},
    {"seed": 7},
    {"stop": ["END"]},
    {"stop": "END"},
    {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1},
    {"max_tokens": 3},
    {"chat_template_kwargs": {"enable_thinking": True}},
)


def _answered(client: openai.OpenAI, wishes: dict[str, Any], *, stream: bool) -> tuple[str, dict[str, Any]]:
    """The text, and what was decided."""
    own = ("temperature", "top_p", "seed", "stop", "max_tokens", "presence_penalty", "frequency_penalty")
    known = {name: value for name, value in wishes.items() if name in own}
    extra = {name: value for name, value in wishes.items() if name not in own}
    asked = {**ASKED, **known, "extra_body": extra}
    if not stream:
        whole = client.chat.completions.create(**asked)
        return whole.choices[0].message.content or "", whole.model_dump()["apportion"]
    chunks = [one.model_dump() for one in client.chat.completions.create(stream=True, **asked)]
    text = "".join(one["choices"][0]["delta"]["content"] or "" for one in chunks if one["choices"])
    return text, chunks[0]["apportion"]


def _check(body: dict[str, Any], wishes: dict[str, Any]) -> None:
    """The upstream was asked as the client asks; where the likeliest token is taken, `top_p` says nothing."""
    idle = {"top_p"} if wishes in LIKELIEST else set()
    for name, value in wishes.items():
        assert name in idle or body.get(name) == value, (name, body)
    if "temperature" not in wishes:
        assert body.get("temperature") == (None if wishes in DRAWN else 0), wishes


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("looks", [False, True])
def test_the_answer_was_asked_for_as_the_client_wishes(
    stub: Stub, known: Routing, tmp_path: Path, looks: bool, stream: bool
) -> None:
    stub.reply = lambda messages: "Berthold V"
    router = routing(tmp_path, looking_router()) if looks else known
    with serving(stub, router) as client:
        for wishes in (*DRAWN, *LIKELIEST):
            stub.bodies.clear()
            text, found = _answered(client, wishes, stream=stream)
            assert text == "Berthold V"
            assert found["draft_reused"] == (wishes in LIKELIEST), wishes
            assert len(stub.bodies) == (1 if wishes in LIKELIEST else 2), wishes
            assert stub.bodies[0]["temperature"] == 0, "what is measured is measured greedily"
            _check(stub.bodies[-1], wishes)


def test_a_draft_ends_where_the_client_says_and_nowhere_else(stub: Stub, known: Routing) -> None:
    stub.reply = lambda messages: "Berthold\nQuestion: V END"
    with serving(stub, known) as client:
        for stop, said in ((["END"], "Berthold\nQuestion: V"), (None, "Berthold")):
            found = client.chat.completions.create(**ASKED, stop=stop).model_dump()
            assert found["apportion"]["draft_reused"]
            assert found["choices"][0]["message"]["content"] == said


@pytest.mark.parametrize("model", ["auto", "cot"])
def test_a_null_means_what_leaving_out_means(stub: Stub, known: Routing, model: str) -> None:
    with serving(stub, known) as client:
        nulls = {"temperature": None, "stop": None, "top_p": None, "seed": None}
        kept = {"chat_template_kwargs": None, "top_k": None, "logit_bias": None, "apportion": None}
        client.chat.completions.create(model=model, messages=QUESTION)
        client.chat.completions.create(model=model, messages=QUESTION, **nulls, extra_body=kept)
    left_out, null = stub.bodies
    assert left_out == null
    assert left_out["temperature"] == 0
    assert left_out["stop"]


def test_a_second_turn_takes_a_null_likewise(stub: Stub, known: Routing) -> None:
    stub.reply = lambda messages: "I do not know yet"
    with serving(stub, known) as client:
        for extra in ({}, {"chat_template_kwargs": None}):
            client.chat.completions.create(model="cot", messages=QUESTION, extra_body=extra)
    assert len(stub.bodies) == 4, "each was asked once more"
    assert stub.bodies[1] == stub.bodies[3]
    assert stub.bodies[1]["chat_template_kwargs"] == {"enable_thinking": False}
