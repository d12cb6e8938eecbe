"""The client against a server over a real socket: every way to misbehave becomes one clear error."""

import socket
from collections.abc import Iterator

import pytest

from apportion.core.errors import InputError, ServiceError
from apportion.route.llm.openai import OpenAILLM
from apportion.route.llm.protocol import Request
from tests.integration.chat_server import KEY, Mode, Server, serve

opened: list[OpenAILLM] = []


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(Server()) as running:
        yield running
    while opened:
        opened.pop().close()


def connect(server: Server, retries: int = 2, **settings: object) -> OpenAILLM:
    llm = OpenAILLM(server.url, retries=retries, backoff_s=0.001, **settings)  # type: ignore[arg-type]
    opened.append(llm)
    return llm


def ask(llm: OpenAILLM, text: str = "capital Bern", **settings: object):
    return llm.complete([Request(text, **settings)])[0]  # type: ignore[arg-type]


def test_a_completion_with_logprobs_and_usage(server: Server) -> None:
    llm = connect(server)
    assert (llm.name, llm.model, llm.has_logprobs, llm.batch_size) == ("tiny", "server:tiny", True, 1)
    found = ask(llm, system="Be brief.", logprobs=True, max_tokens=9, thinking=False)
    assert found.text == "Answer: Bern"
    assert found.token_logprobs == (-0.5, -0.25, pytest.approx(-1 / 6))
    assert (found.prompt_tokens, found.completion_tokens, found.tokens_measured) == (6, 3, True)
    assert found.latency_ms > 0
    body = server.calls[-1]["body"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (9, 0.0, True)


def test_the_switch_is_sent_only_where_it_is_asked_for(server: Server) -> None:
    ask(connect(server))
    body = server.calls[-1]["body"]
    assert "chat_template_kwargs" not in body
    assert "logprobs" not in body
    assert "seed" not in body


@pytest.mark.parametrize(("logprobs", "reason"), [("omit", "answers without"), ("refuse", "refuses them")])
def test_servers_without_logprobs_are_detected_once(server: Server, logprobs: str, reason: str) -> None:
    server.logprobs = logprobs
    llm = connect(server)
    assert not llm.has_logprobs
    assert reason in llm.logprobs_reason
    probes = len(server.calls)
    assert ask(llm, logprobs=True).token_logprobs is None
    assert len(server.calls) == probes + 1


def test_servers_that_refuse_the_thinking_switch_are_not_sent_it(server: Server) -> None:
    server.thinking_switch = False
    llm = connect(server)
    assert llm.has_logprobs
    assert not llm.habits.thinking_switch
    assert ask(llm, thinking=False).text == "Answer: Bern"


def test_a_model_must_be_named_where_there_are_several(server: Server) -> None:
    server.models = ("a", "b")
    with pytest.raises(InputError, match="lists 2: a, b"):
        connect(server)
    assert connect(server, model="b").name == "b"


@pytest.mark.parametrize("mode", ["broken", "html", "empty", "500", "429"])
def test_a_fault_that_passes_is_retried(server: Server, mode: Mode) -> None:
    llm = connect(server)
    first = len(server.calls)
    server.mode = lambda number: mode if number < first + 2 else "ok"
    found = ask(llm)
    assert (found.text, found.attempts) == ("Answer: Bern", 3)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("broken", "what is not JSON"),
        ("html", "what is not JSON"),
        ("empty", "without choices"),
        ("500", "HTTP 500: .*out of order"),
        ("429", "asked too often"),
    ],
)
def test_a_fault_that_stays_is_a_service_error(server: Server, mode: Mode, message: str) -> None:
    llm = connect(server)
    first = len(server.calls)
    server.mode = lambda number: mode
    with pytest.raises(ServiceError, match=message) as caught:
        ask(llm)
    assert "after 3 attempts" in str(caught.value)
    assert "remedy" in str(caught.value)
    assert len(server.calls) == first + 3


def test_a_refused_key_is_said_at_once_and_never_shown(server: Server) -> None:
    server.mode = lambda number: "401"
    with pytest.raises(ServiceError, match="refuses the key") as caught:
        connect(server, api_key=KEY)
    assert KEY not in str(caught.value)
    assert "[key]" in str(caught.value)
    assert len(server.calls) == 1


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPORTION_API_KEY", KEY)
    llm = connect(server)
    server.mode = lambda number: "401"
    with pytest.raises(ServiceError, match=r"Incorrect API key provided: \[key\]"):
        ask(llm)
    assert KEY not in llm.model + llm.name


def test_nothing_else_of_the_environment_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "our-organisation")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "our-project")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/other")
    ask(connect(server))
    assert not [value for value in server.calls[-1]["headers"].values() if "our-" in value]


def test_redirects_are_not_followed(server: Server) -> None:
    llm = connect(server, retries=0)
    server.mode = lambda number: "redirect"
    with pytest.raises(ServiceError, match="redirects elsewhere"):
        ask(llm)


def test_a_slow_server_times_out(server: Server) -> None:
    llm = connect(server, retries=0, timeout_s=2.0)
    server.mode = lambda number: "slow"
    with pytest.raises(ServiceError, match="did not answer in time"):
        ask(llm)
    assert server.running == 1, "it had not answered yet"


def test_a_server_that_is_down() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ServiceError, match="cannot be reached"):
        OpenAILLM(f"http://127.0.0.1:{port}/v1", retries=1, backoff_s=0.001)


def test_a_wrong_path_or_model_is_named(server: Server) -> None:
    with pytest.raises(ServiceError, match="no such path or model"):
        OpenAILLM(server.url + "/nowhere", "tiny", backoff_s=0.001)


def test_a_prompt_longer_than_the_context_is_cut_and_says_so(server: Server) -> None:
    llm = connect(server)
    server.context = 200
    passages = "passage text " * 40
    found = ask(llm, f"{passages}What is the capital?", expendable=(0, len(passages)))
    sent = server.users()[-1]
    assert sent.endswith("What is the capital?")
    assert len(sent) <= 200
    assert found.cut_prompt_tokens == pytest.approx((len(passages) + 20 - len(sent)) / 4, abs=3)
    assert found.attempts > 1
    server.context = 0
    with pytest.raises(ServiceError, match="context length"):
        ask(llm, "x" * 5000)


def test_requests_run_at_once_up_to_the_limit_and_keep_their_order(server: Server) -> None:
    llm = connect(server, concurrency=4)
    server.delay_s = 0.05
    found = llm.complete([Request(f"number {n}") for n in range(12)])
    assert [one.text for one in found] == [f"Answer: {n}" for n in range(12)]
    assert 2 <= server.most_running <= 4


def test_missing_usage_is_estimated_and_said(server: Server) -> None:
    server.usage = False
    assert not ask(connect(server)).tokens_measured


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "ftp://x"}, "expected http"),
        ({"concurrency": 0}, "--concurrency 0"),
        ({"timeout_s": 0}, "--timeout 0"),
        ({"retries": -1}, "--retries -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OpenAILLM(**{"base_url": "http://127.0.0.1:9", **settings})  # type: ignore[arg-type]
