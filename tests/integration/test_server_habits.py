"""What servers do that OpenAI's does not: a stub on loopback, each habit over a real socket."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from apportion.core.errors import ServiceError
from apportion.route.llm.habits import GREEDY
from apportion.route.llm.openai import OpenAILLM
from apportion.route.llm.protocol import Completion, Request

Reply = tuple[int, object, dict[str, str]]  # status, body (JSON, or text as it is), headers
Answer = Callable[[dict[str, Any]], Reply]


def body(content: object = "Answer: Bern", finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 3}}


def ok(content: object = "Answer: Bern", finish: str = "stop", **message: Any) -> Reply:
    return 200, body(content, finish, **message), {}


def refuse(said: str, status: int = 400, **headers: str) -> Reply:
    return status, {"error": {"message": said}}, {name.replace("_", "-"): value for name, value in headers.items()}


class Stub(ThreadingHTTPServer):
    """Answers completions as `answer` says and remembers their bodies."""

    def __init__(self, answer: Answer, models: object) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.models = answer, models
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self.send(200, self.server.models, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(asked)
        self.send(*self.server.answer(asked))

    def send(self, status: int, value: object, headers: dict[str, str]) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        for name, one in headers.items():
            self.send_header(name, one)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def stub(answer: Answer, models: object = None) -> Iterator[Stub]:
    running = Stub(answer, {"data": [{"id": "tiny"}]} if models is None else models)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()
        thread.join(5)


@contextmanager
def connected(answer: Answer, **settings: Any) -> Iterator[tuple[Stub, OpenAILLM]]:
    with stub(answer) as server:
        llm = OpenAILLM(server.url, backoff_s=0.001, **settings)
        try:
            yield server, llm
        finally:
            llm.close()


def one(llm: OpenAILLM, text: str = "Capital of Switzerland?", **settings: Any) -> Completion:
    return llm.complete([Request(text, **settings)])[0]


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        ("temperature", "Unsupported value: 'temperature' does not support 0.0 with this model."),
        ("chat_template_kwargs", "Unrecognized request argument supplied: chat_template_kwargs"),
        ("logprobs", "logprobs are not supported with this model"),
        ("top_logprobs", "top_logprobs: extra inputs are not permitted"),
        ("stop", "Unsupported parameter: 'stop' is not supported with this model."),
    ],
)
def test_a_part_that_is_refused_is_left_out_from_then_on(refused: str, said: str) -> None:
    def answer(asked: dict[str, Any]) -> Reply:
        return refuse(said) if refused in asked else ok("Answer: Bern\n\n\nmore")

    with connected(answer) as (server, llm):
        probes = len(server.asked)
        assert probes == 2
        found = one(llm, logprobs=True, thinking=False, stop=("\n\n\n",))
        assert found.text == "Answer: Bern"
        assert refused not in server.asked[-1]
        assert len(server.asked) == probes + 1
        assert ("max_completion_tokens" in server.asked[-1]) == (refused == "max_tokens")
        assert (GREEDY in found.weaker) == (refused == "temperature")


def test_a_refused_system_message_goes_into_the_first_turn() -> None:
    def answer(asked: dict[str, Any]) -> Reply:
        roles = [message["role"] for message in asked["messages"]]
        return refuse("System role not supported") if "system" in roles else ok()

    with connected(answer) as (server, llm):
        one(llm, system="Be brief.", examples=(("one", "two"),))
        first = server.asked[-1]["messages"]
        assert [message["role"] for message in first] == ["user", "assistant", "user"]
        assert first[0]["content"] == "Be brief.\n\none"


def test_a_refusal_that_comes_later_is_learned_then() -> None:
    def answer(asked: dict[str, Any]) -> Reply:
        late = len(asked["messages"]) > 3 and "temperature" in asked
        return refuse("temperature must not be given") if late else ok()

    with connected(answer) as (server, llm):
        found = one(llm, system="S", examples=(("a", "b"),))
        assert found.text == "Answer: Bern"
        assert GREEDY in found.weaker
        assert "temperature" not in server.asked[-1]


def test_content_as_parts_and_reasoning_fields() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Bern"}]
    replies = iter([ok(), ok(parts), ok("Bern", reasoning="hm"), ok(None, reasoning_content="hm", finish="length")])
    with connected(lambda _: next(replies)) as (_, llm):
        for text in ("Bern", "Bern", ""):
            found = one(llm)
            assert (found.text, found.thinking_text) == (text, "hm")


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_no_content_is_an_empty_answer_where_the_server_says_why(finish: str) -> None:
    replies = iter([ok(), ok(None, finish)])
    with connected(lambda _: next(replies)) as (_, llm):
        found = one(llm)
        assert (found.text, found.finish) == ("", "length" if finish == "length" else "filter")


def test_no_content_without_a_reason_is_not_blamed_on_the_url() -> None:
    replies = iter([ok(), ok(None), ok(None, "tool_calls", tool_calls=[{"id": "x"}])])
    with connected(lambda _: next(replies), retries=0) as (_, llm):
        with pytest.raises(ServiceError, match="content null, finish_reason 'stop'") as caught:
            one(llm)
        assert "URL" not in str(caught.value)
        with pytest.raises(ServiceError, match="tool call"):
            one(llm)


def test_a_template_that_opens_the_thinking_is_learned_and_a_cut_thought_is_no_answer() -> None:
    replies = iter([ok(), ok("2+2 is 4</think>4"), ok("so 2+2 is", "length")])
    with connected(lambda _: next(replies)) as (_, llm):
        assert (one(llm).text, one(llm).text) == ("4", "")


def test_an_error_in_the_body_of_a_200_counts_as_its_code() -> None:
    busy = (200, {"error": {"code": 429, "message": "rate limited upstream"}}, {})
    replies = iter([ok(), busy, ok(), (200, {"error": {"code": 401, "message": "no such key"}}, {})])
    with connected(lambda _: next(replies)) as (_, llm):
        assert one(llm).attempts == 2
        with pytest.raises(ServiceError, match="refuses the key"):
            one(llm)


def test_no_credit_is_not_tried_again() -> None:
    replies = iter([ok()])

    def answer(_: dict[str, Any]) -> Reply:
        return next(replies, refuse("You exceeded your current quota (insufficient_quota)", 429))

    with connected(answer) as (server, llm):
        with pytest.raises(ServiceError, match="no credit left") as caught:
            one(llm)
        assert "attempts" not in str(caught.value)
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    "headers",
    [{"retry-after": "0.2"}, {"retry-after-ms": "200"}, {"retry-after": "a date"}],
)
def test_the_pause_that_is_asked_for_is_kept(headers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    if headers.get("retry-after") == "a date":
        headers = {"retry-after": formatdate(time.time() + 25, usegmt=True)}
    paused: list[float] = []
    # not `time.sleep` itself, which every thread uses
    monkeypatch.setattr("apportion.route.llm.call.time", SimpleNamespace(sleep=paused.append, time=time.time))
    replies = iter([ok(), (429, {"error": {"message": "slow down"}}, headers), ok()])
    with connected(lambda _: next(replies)) as (_, llm):
        one(llm)
    assert 0.19 <= paused[0] <= 25


def test_a_pause_of_an_hour_is_an_error_at_once() -> None:
    replies = iter([ok(), refuse("slow down", 429, retry_after="3600")])
    with connected(lambda _: next(replies)) as (_, llm), pytest.raises(ServiceError, match="asks to wait 3600 s"):
        one(llm)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens."),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9000"),
        (500, "the request exceeds the available context size. try increasing the context size"),
        (400, "prompt is too long: 9000 tokens > 4096 maximum"),
    ],
)
def test_a_prompt_that_is_too_long_is_cut_whatever_the_words(status: int, said: str) -> None:
    def answer(asked: dict[str, Any]) -> Reply:
        return refuse(said, status) if len(asked["messages"][-1]["content"]) > 500 else ok()

    with connected(answer) as (server, llm):
        found = one(llm, "passages " * 100 + "Who?", expendable=(0, 900))
        assert found.cut_prompt_tokens > 0
        assert server.asked[-1]["messages"][-1]["content"].endswith("Who?")


def test_a_prompt_that_is_shortened_without_a_word_is_noticed() -> None:
    def answer(asked: dict[str, Any]) -> Reply:
        size = sum(len(message["content"]) for message in asked["messages"])
        counted = {"prompt_tokens": min(size // 4, 2048), "completion_tokens": 3}
        return 200, {**body(), "usage": counted}, {}

    with connected(answer) as (_, llm):
        assert one(llm, "word " * 700).cut_prompt_tokens == 0
        assert one(llm, "word " * 8000).cut_prompt_tokens == pytest.approx(8000, abs=100)


def test_a_web_page_at_models_is_one_clear_error() -> None:
    with stub(lambda _: ok(), models="<html>It works!</html>") as server:
        with pytest.raises(ServiceError, match="what is not JSON"):
            OpenAILLM(server.url, retries=0)
        server.models = {"models": []}
        with pytest.raises(ServiceError, match="no list of models"):
            OpenAILLM(server.url, retries=0)


def test_cached_tokens_and_margins_are_kept_where_they_are_sent() -> None:
    tokens = [{"token": "Bern", "logprob": -0.1, "top_logprobs": [{"logprob": -0.1}, {"logprob": -2.1}]}]
    told: dict[str, Any] = body("Bern")
    told["choices"][0]["logprobs"] = {"content": tokens}
    told["usage"]["prompt_tokens_details"] = {"cached_tokens": 16}
    with connected(lambda _: (200, told, {})) as (_, llm):
        found = one(llm, logprobs=True)
        assert (found.cached_tokens, found.margin) == (16, pytest.approx(2.0))


def test_a_proxy_is_not_asked_for_this_machine_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with connected(lambda _: ok(), retries=0) as (_, llm):
        assert one(llm).text == "Answer: Bern"


def drip(listener: socket.socket, ends: threading.Event) -> None:
    """Accept a connection and send one byte of the body every tenth of a second."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n")
        while not ends.wait(0.1):
            try:
                connection.sendall(b" ")
            except OSError:
                return


def test_a_byte_now_and_then_ends_at_the_deadline() -> None:
    ends = threading.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=drip, args=(listener, ends), daemon=True)
        thread.start()
        with pytest.raises(ServiceError, match="did not answer in time"):
            OpenAILLM(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "tiny", retries=0, timeout_s=0.6)
        assert thread.is_alive(), "it was still dripping"
        ends.set()
        thread.join(5)
