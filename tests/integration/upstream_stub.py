"""An OpenAI-compatible server on a real socket that answers what a test says, misbehaves on order, and remembers."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

Json = dict[str, Any]


@dataclass(slots=True)
class Stub:
    """What a test may change at any time, and what was asked.

    Attributes:
        reply: text for the messages asked. reasoning: sent apart as `reasoning_content`.
        logprobs: of every token, for the messages asked; None answers without them. usage: whether it is reported.
        cached: prompt tokens that it says it had computed before.
        context: longest prompt in characters before a 400 in vLLM's words.
        refused: what is said, with a 400, of a request that has this part (a field, or "system").
        fail: status and body of every further completion; None answers. headers: sent with it.
        raw: the bytes of every stream; None streams the reply.
        pause_s: before the first byte. token_s: between tokens. cut_after: tokens after which a stream breaks off.
        cancelled: streams whose client went away. bodies: of completions, the start-up probe left out.
        embedded: bodies of embeddings.
    """

    url: str = ""
    models: tuple[str, ...] = ("tiny",)
    reply: Callable[[list[Json]], str] = lambda messages: f"Reply to {messages[-1]['content']}"
    reasoning: str = ""
    logprobs: float | Callable[[list[Json]], float] | None = -0.01
    usage: bool = True
    cached: int = 0
    context: int = 1 << 30
    refused: dict[str, str] = field(default_factory=dict)
    fail: tuple[int, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: list[bytes] | None = None
    pause_s: float = 0.0
    token_s: float = 0.0
    cut_after: int | None = None
    cancelled: int = 0
    bodies: list[Json] = field(default_factory=list)
    embedded: list[Json] = field(default_factory=list)

    def asked(self) -> list[str]:
        """The last message of every completion asked for."""
        return [body["messages"][-1]["content"] for body in self.bodies]


def tokens_of(text: str) -> list[str]:
    """Four characters each."""
    return [text[at : at + 4] for at in range(0, len(text), 4)]


def _size(body: Json) -> int:
    return sum(len(str(message.get("content"))) for message in body["messages"])


def _usage(stub: Stub, body: Json, tokens: list[str]) -> Json:
    prompt = -(-_size(body) // 4)
    found: Json = {"prompt_tokens": prompt, "completion_tokens": len(tokens), "total_tokens": prompt + len(tokens)}
    return {**found, "prompt_tokens_details": {"cached_tokens": stub.cached}} if stub.cached else found


def _whole(stub: Stub, body: Json, tokens: list[str], finish: str) -> Json:
    message: Json = {"role": "assistant", "content": "".join(tokens)}
    if stub.reasoning:
        message["reasoning_content"] = stub.reasoning
    choice: Json = {"index": 0, "message": message, "finish_reason": finish}
    if body.get("logprobs") and stub.logprobs is not None:
        each = stub.logprobs(body["messages"]) if callable(stub.logprobs) else stub.logprobs
        choice["logprobs"] = {"content": [{"token": one, "logprob": each} for one in tokens]}
    answer: Json = {"id": "up-1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
    return {**answer, "usage": _usage(stub, body, tokens)} if stub.usage else answer


async def _events(stub: Stub, body: Json, tokens: list[str], finish: str) -> AsyncIterator[bytes]:
    base = {"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}

    def chunk(delta: Json, ended: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": ended}]
        return b"data: " + json.dumps({**base, "choices": choices}).encode() + b"\n\n"

    try:
        yield chunk({"role": "assistant", "content": ""})
        if stub.reasoning:
            yield chunk({"reasoning_content": stub.reasoning})
        for number, token in enumerate(tokens):
            if number == stub.cut_after:
                raise RuntimeError("the stub breaks off, as it was told")
            await asyncio.sleep(stub.token_s)  # also of no time, or it would not notice that its client has gone
            yield chunk({"content": token})
        yield chunk({}, finish)
        if stub.usage and (body.get("stream_options") or {}).get("include_usage"):
            yield (
                b"data: " + json.dumps({**base, "choices": [], "usage": _usage(stub, body, tokens)}).encode() + b"\n\n"
            )
        yield b"data: [DONE]\n\n"
    except asyncio.CancelledError:
        stub.cancelled += 1
        raise


def make_app(stub: Stub) -> FastAPI:
    """The server as an application."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> Json:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in stub.models]}

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Json:
        stub.embedded.append(await request.json())
        return {"object": "list", "model": "tiny", "data": [{"index": 0, "embedding": [0.5, 0.25]}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        if not str(body["messages"][-1]["content"]).endswith("Say hello."):
            stub.bodies.append(body)
        if stub.pause_s:
            await asyncio.sleep(stub.pause_s)
        if stub.fail is not None:
            status, said = stub.fail
            kind = PlainTextResponse if isinstance(said, str) else JSONResponse
            return kind(said, status, stub.headers)
        parts = {*body, *(message["role"] for message in body["messages"])}
        if refused := next((said for part, said in stub.refused.items() if part in parts), ""):
            return JSONResponse({"error": {"message": refused}}, 400)
        if _size(body) > stub.context:
            said = f"This model's maximum context length is {stub.context} tokens."
            return JSONResponse({"error": {"message": said, "code": 400}}, 400)
        if stub.raw is not None and body.get("stream"):
            return StreamingResponse(iter(stub.raw), media_type="text/event-stream")
        try:
            tokens = tokens_of(stub.reply(body["messages"]))
        except RuntimeError as error:  # an answer: an exception would close the connection under the next request
            return JSONResponse({"error": {"message": str(error)}}, 500)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(tokens)
        if not isinstance(limit, int) or not isinstance(body.get("stream", False), bool | None):
            return JSONResponse({"error": {"message": "a field of the wrong type"}}, 422)
        finish = "length" if len(tokens) > limit else "stop"
        if body.get("stream"):
            return StreamingResponse(_events(stub, body, tokens[:limit], finish), media_type="text/event-stream")
        return JSONResponse(_whole(stub, body, tokens[:limit], finish))

    return app


@contextmanager
def served(app: Any, **options: Any) -> Iterator[str]:
    """An application on a free port of this machine, in a thread; yields its URL."""
    with socket.socket() as found:  # held, so that nobody else takes the port meanwhile
        found.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [found]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{found.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)


@contextmanager
def upstream() -> Iterator[Stub]:
    """A stub on a socket."""
    stub = Stub()
    with served(make_app(stub), timeout_graceful_shutdown=1) as url:
        stub.url = f"{url}/v1"
        yield stub
