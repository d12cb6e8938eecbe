"""The main job of `serve`: stock clients over real sockets, plain and streaming, and what they are told."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from apportion.serve import Address, Settings, Upstream, create_app
from tests.integration.upstream_stub import Stub, served, upstream
from tests.routings import knowing_router, looking_router, routing, static_router

QUESTION = [{"role": "user", "content": "Who founded Bern?"}]


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with upstream() as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    """The stub as it was before each test."""
    stub: Stub = request.getfixturevalue("stub")
    before = {name: getattr(stub, name) for name in Stub.__slots__ if name not in ("bodies", "url")}
    stub.bodies.clear()
    yield
    for name, value in before.items():
        setattr(stub, name, value)


@pytest.fixture(scope="module")
def client(stub: Stub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a server whose router reads the draft."""
    folder = tmp_path_factory.mktemp("serve")
    app = create_app(routing(folder, knowing_router()), Upstream(Address(stub.url)), Settings())
    with ExitStack() as stack:
        url = stack.enter_context(served(app))
        found = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        yield stack.enter_context(found)


def _events(client: openai.OpenAI, **asked: Any) -> list[dict[str, Any]]:
    return [chunk.model_dump() for chunk in client.chat.completions.create(stream=True, **asked)]


def _text(chunks: list[dict[str, Any]]) -> str:
    return "".join(one["choices"][0]["delta"]["content"] or "" for one in chunks if one["choices"])


def test_a_sure_draft_is_the_answer(client: openai.OpenAI, stub: Stub) -> None:
    stub.reply = lambda messages: "Berthold V"
    answer = client.chat.completions.create(model="auto", messages=QUESTION)
    assert answer.choices[0].message.content == "Berthold V"
    assert len(stub.bodies) == 1, "the draft was asked for once and nothing else"
    assert stub.bodies[0]["logprobs"] is True
    found = answer.model_dump()["apportion"]
    assert (found["route"], found["reason"], found["draft_reused"]) == ("direct", "router", True)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3  # "Bert" "hold" " V"


def test_an_unsure_draft_is_thrown_away_and_counted(client: openai.OpenAI, stub: Stub) -> None:
    stub.reply, stub.logprobs = lambda messages: "Berthold V", -2.0
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=QUESTION)
    answer = raw.parse()
    found = answer.model_dump()
    assert raw.headers["x-apportion-route"] == "rag"
    assert float(raw.headers["x-apportion-p-rag"]) > 0.9
    assert [one["id"] for one in found["apportion"]["sources"]] == ["bern", "basel"]
    assert "Berthold of Zähringen" in stub.bodies[1]["messages"][-1]["content"]
    split = found["usage"]["apportion"]
    assert split["draft"]["completion_tokens"] == split["answer"]["completion_tokens"] == 3
    assert found["usage"]["completion_tokens"] == 6
    assert found["usage"]["prompt_tokens"] == split["draft"]["prompt_tokens"] + split["answer"]["prompt_tokens"]


@pytest.mark.parametrize("logprobs", [-0.01, -2.0])
def test_streams_carry_the_decision_first_and_usage_only_when_asked(
    client: openai.OpenAI, stub: Stub, logprobs: float
) -> None:
    stub.reply, stub.logprobs = lambda messages: "Berthold V of Zähringen, in 1191", logprobs
    chunks = _events(client, model="auto", messages=QUESTION)
    assert _text(chunks) == "Berthold V of Zähringen, in 1191"
    assert chunks[0]["apportion"]["route"] == ("direct" if logprobs > -1 else "rag")
    assert all(one.get("usage") is None and one["choices"] for one in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    counted = _events(client, model="auto", messages=QUESTION, stream_options={"include_usage": True})
    assert counted[-1]["choices"] == []
    assert counted[-1]["usage"]["completion_tokens"] == (8 if logprobs > -1 else 16)


@pytest.mark.parametrize(
    ("alias", "route"), [("direct", "direct"), ("rag", "rag"), ("cot", "cot"), ("rag-cot", "rag+cot")]
)
def test_an_alias_forces_a_pipeline(client: openai.OpenAI, stub: Stub, alias: str, route: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=alias, messages=QUESTION)
    assert raw.headers["x-apportion-route"] == route
    assert raw.headers["x-apportion-reason"] == "forced"
    assert len(stub.bodies) == 1
    assert ("1191" in stub.bodies[0]["messages"][-1]["content"]) == ("rag" in route)


def test_body_wins_over_header_and_header_over_alias(client: openai.OpenAI) -> None:
    create = client.chat.completions.with_raw_response.create
    header = {"x-apportion-route": "rag"}
    assert create(model="cot", messages=QUESTION, extra_headers=header).headers["x-apportion-route"] == "rag"
    both = create(model="cot", messages=QUESTION, extra_headers=header, extra_body={"apportion": {"route": "direct"}})
    assert both.headers["x-apportion-route"] == "direct"


def test_the_clients_system_prompt_stays_beside_ours(client: openai.OpenAI, stub: Stub) -> None:
    client.chat.completions.create(
        model="direct", messages=[{"role": "system", "content": "Speak like a pirate."}, *QUESTION], temperature=0.7
    )
    system = stub.bodies[0]["messages"][0]
    assert system["role"] == "system"
    assert system["content"].startswith("Speak like a pirate.\n\nAnswer the question")
    assert stub.bodies[0]["temperature"] == 0.7
    assert [one["role"] for one in stub.bodies[0]["messages"]] == ["system", "user"]


def test_a_follow_up_is_searched_for_in_its_conversation(client: openai.OpenAI, stub: Stub) -> None:
    turns = [*QUESTION, {"role": "assistant", "content": "Berthold."}, {"role": "user", "content": "And when?"}]
    answer = client.chat.completions.create(model="rag", messages=turns)
    assert answer.model_dump()["apportion"]["sources"][0]["id"] == "bern"
    assert [one["role"] for one in stub.bodies[0]["messages"]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("Thanks a lot!", "greeting"), ("### Task:\nGenerate a title for Bern", "task")],
)
def test_what_is_no_question_is_passed_on(client: openai.OpenAI, stub: Stub, content: str, reason: str) -> None:
    stub.logprobs = -2.0  # would retrieve if it were judged
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": content}]
    )
    assert (raw.headers["x-apportion-route"], raw.headers["x-apportion-reason"]) == ("direct", reason)
    assert stub.asked() == [content]


IMAGE = [
    {"type": "text", "text": "What is it?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "content that is no text"),
    ],
)
def test_what_no_pipeline_knows_is_forwarded(
    client: openai.OpenAI, stub: Stub, extra: dict[str, Any], reason: str
) -> None:
    raw = client.chat.completions.with_raw_response.create(**{"model": "auto", "messages": QUESTION, **extra})
    assert raw.headers["x-apportion-reason"] == f"forwarded: {reason}"
    sent = stub.bodies[0]
    assert {name: sent[name] for name in extra} == extra
    assert sent["messages"] == extra.get("messages", QUESTION), "as it was sent"
    assert sent["model"] == "tiny"


def test_text_in_parts_is_text(client: openai.OpenAI, stub: Stub) -> None:
    parts = [{"type": "text", "text": "Who founded"}, {"type": "text", "text": "Bern?"}]
    raw = client.chat.completions.with_raw_response.create(model="rag", messages=[{"role": "user", "content": parts}])
    assert raw.headers["x-apportion-route"] == "rag"
    assert stub.asked()[0].endswith("Question: Who founded\nBern?")


def test_a_question_without_a_passage_is_answered_without_and_said(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="rag-cot", messages=[{"role": "user", "content": "Qwertz asdf?"}])
    found = answer.model_dump()["apportion"]
    assert found["route"] == "cot"
    assert "no passage" in found["weaker"][0]


def test_a_context_too_small_loses_passages_then_turns_and_says_so(client: openai.OpenAI, stub: Stub) -> None:
    stub.context = 260
    turns = [{"role": "user", "content": "x" * 100}, {"role": "assistant", "content": "y" * 100}, *QUESTION]
    answer = client.chat.completions.create(model="rag", messages=turns)
    said = answer.model_dump()["apportion"]["weaker"][-1]
    assert said.startswith("cut to the context: passages, the worse ones first")
    assert "turns" in said
    assert stub.asked()[-1].endswith("Question: Who founded Bern?")
    stub.context = 10
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="rag", messages=turns)
    assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize("context", [700, 500, 300])
def test_a_shortened_conversation_still_begins_with_the_user(client: openai.OpenAI, stub: Stub, context: int) -> None:
    def strict(messages: list[Any]) -> str:
        roles = [one["role"] for one in messages if one["role"] != "system"]
        if roles != [*["user", "assistant"] * (len(roles) // 2), "user"]:
            raise RuntimeError("Conversation roles must alternate user/assistant/user/assistant/...")
        return "1191"

    stub.context, stub.reply = context, strict
    turns = [{"role": role, "content": "x" * 100} for role in ("user", "assistant") * 3]
    answer = client.chat.completions.create(model="rag", messages=[*turns, *QUESTION])
    assert answer.choices[0].message.content == "1191"
    assert "oldest 4 turns" in answer.model_dump()["apportion"]["weaker"][-1]


def test_no_logprobs_upstream_is_the_draft_free_router_and_said(stub: Stub, tmp_path: Path) -> None:
    stub.logprobs = None
    app = create_app(routing(tmp_path, knowing_router()), Upstream(Address(stub.url)))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="auto", messages=QUESTION)
    found = answer.model_dump()["apportion"]
    assert (found["route"], found["tier"]) == ("rag", "lean")
    assert "no draft probe" in found["weaker"][0]
    assert len(stub.bodies) == 1


def test_thinking_is_kept_apart(client: openai.OpenAI, stub: Stub) -> None:
    stub.reply = lambda messages: "<think>1191 or 1192?</think>\n\nAnswer: 1191"
    answer = client.chat.completions.create(model="cot", messages=QUESTION)
    message = answer.choices[0].message.model_dump()
    assert (message["content"], message["reasoning_content"]) == ("Answer: 1191", "1191 or 1192?")
    chunks = _events(client, model="cot", messages=QUESTION)
    deltas = [one["choices"][0]["delta"] for one in chunks]
    assert "".join(one.get("reasoning_content") or "" for one in deltas) == "1191 or 1192?"
    assert _text(chunks) == "Answer: 1191"


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["auto", "auto-cheap", "auto-quality", "direct", "rag", "cot", "rag-cot", "tiny"]
    assert client.models.retrieve("auto").id == "auto"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing/like-it")


def test_embeddings_pass_through(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="auto", input="x", encoding_format="float")
    assert found.data[0].embedding == [0.5, 0.25]
    assert found.model == "tiny"


def test_responses_are_a_clear_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="use /v1/chat/completions"):
        client.responses.create(model="auto", input="x")


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"model": "gpt-9"}, 404, "model: 'gpt-9' is unknown"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content: is missing"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "none is of the user"),
        ({"messages": [*QUESTION, {"role": "tool", "content": "x", "tool_call_id": "a"}]}, 400, "messages[1]"),
        ({"extra_body": {"apportion": {"token_weight": -1}}}, 400, "apportion.token_weight"),
        ({"extra_body": {"apportion": {"token_weight": "much"}}}, 400, "apportion.token_weight"),
        ({"extra_body": {"apportion": {"weight": 1}}}, 400, "apportion.weight: is no control"),
        (
            {"extra_body": {"apportion": {"price_weight": 1}}},
            400,
            "price_weight: this router was trained without prices",
        ),
        ({"extra_headers": {"x-apportion-latency-weight": "nan"}}, 400, "x-apportion-latency-weight"),
        ({"extra_body": {"max_tokens": 0}}, 400, "max_tokens"),
        ({"extra_body": {"temperature": "hot"}}, 400, "temperature"),
        ({"extra_body": {"stream": 1}}, 400, "stream"),
    ],
)
def test_bad_requests_are_refused_by_name(
    client: openai.OpenAI, stub: Stub, change: dict[str, Any], status: int, named: str
) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(**{"model": "auto", "messages": QUESTION, **change})
    assert error.value.status_code == status
    assert named in error.value.message
    body = json.loads(error.value.response.text)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert not stub.bodies, "nothing was asked upstream"


def test_a_static_router_asks_no_probe(stub: Stub, tmp_path: Path) -> None:
    app = create_app(routing(tmp_path, static_router("cot")), Upstream(Address(stub.url)))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        found = client.chat.completions.create(model="auto", messages=QUESTION).model_dump()["apportion"]
    assert (found["route"], found["tier"], found["p_rag"]) == ("cot", "static", None)
    assert len(stub.bodies) == 1


@pytest.mark.parametrize(("limit", "asked"), [(None, 1), (100, 2)])
def test_a_draft_that_was_cut_is_the_answer_only_where_no_more_is_allowed(
    stub: Stub, tmp_path: Path, limit: int | None, asked: int
) -> None:
    stub.reply = lambda messages: "four" * 60
    app = create_app(routing(tmp_path, knowing_router()), Upstream(Address(stub.url)), Settings(max_tokens=limit))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="auto", messages=QUESTION)
        short = client.chat.completions.create(model="auto", messages=QUESTION, max_tokens=5)
    assert len(stub.bodies) == asked + 1
    assert answer.choices[0].finish_reason == ("length" if limit is None else "stop")
    assert answer.model_dump()["apportion"]["draft_reused"] == (limit is None)
    assert short.choices[0].message.content == "four" * 5


@pytest.mark.parametrize(("logprobs", "route", "calls"), [(-0.01, "rag", 1), (-2.0, "rag+cot", 2)])
def test_a_retrieved_answer_is_looked_at_before_reasoning(
    stub: Stub, tmp_path: Path, logprobs: float, route: str, calls: int
) -> None:
    stub.reply, stub.logprobs = lambda messages: "Answer: Berthold V", logprobs
    app = create_app(routing(tmp_path, looking_router()), Upstream(Address(stub.url)))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        found = client.chat.completions.create(model="auto", messages=QUESTION).model_dump()
        chunks = _events(client, model="auto", messages=QUESTION)
    assert found["apportion"]["route"] == chunks[0]["apportion"]["route"] == route
    assert found["apportion"]["draft_reused"] == (calls == 1)
    assert found["usage"]["completion_tokens"] == 5 * calls
    assert len(found["apportion"]["sources"]) == 2
    assert len(stub.bodies) == 2 * calls, "plain and streamed"
    assert _text(chunks) == "Answer: Berthold V"
