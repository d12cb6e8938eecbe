"""An OpenAI-compatible server on 127.0.0.1 that misbehaves where a test asks for it, and remembers calls."""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

Mode = Literal["ok", "broken", "html", "empty", "slow", "401", "429", "500", "redirect", "context"]
KEY = "sk-secret-key-of-the-test"


@dataclass(slots=True)
class Server:
    """Settings that a test may change at any time, and what was asked.

    Attributes:
        logprobs: "yes", "omit" (answers 200 without them) or "refuse" (400). without: user messages to omit them for.
        mode: how the n-th completion (from 0) is answered.
        context: longest prompt in characters before a 400 that names the context length.
        reply: text for a user message.
    """

    url: str = ""
    models: tuple[str, ...] = ("tiny",)
    logprobs: str = "yes"
    without: Callable[[str], bool] = lambda user: False
    thinking_switch: bool = True
    usage: bool = True
    context: int = 1 << 30
    delay_s: float = 0.0
    mode: Callable[[int], Mode] = lambda number: "ok"
    reply: Callable[[str], str] = lambda user: f"Answer: {user.split()[-1]}"
    calls: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def users(self) -> list[str]:
        """The user messages that were answered with 200 and a completion, the start-up probe left out."""
        asked = [call["user"] for call in self.calls if call["mode"] == "ok"]
        return [user for user in asked if user != "Say hello."]


def _completion(server: Server, body: dict[str, Any], user: str) -> dict[str, Any]:
    text = server.reply(user)
    tokens = [text[at : at + 4] for at in range(0, len(text), 4)]
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    if body.get("logprobs") and server.logprobs == "yes" and not server.without(user):
        listed = [
            {"token": token, "logprob": -0.5 / (1 + n), "bytes": None, **_alternatives(body, token, -0.5 / (1 + n))}
            for n, token in enumerate(tokens)
        ]
        choice["logprobs"] = {"content": listed}
    prompt = sum(len(message["content"]) for message in body["messages"])
    answer = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
    }
    usage = {"prompt_tokens": math.ceil(prompt / 4), "completion_tokens": len(tokens), "total_tokens": 0}
    return {**answer, "usage": usage} if server.usage else answer


def _alternatives(body: dict[str, Any], token: str, logprob: float) -> dict[str, Any]:
    """The likeliest tokens where they are asked for: the one that was chosen, and one a nat below it."""
    if not body.get("top_logprobs"):
        return {"top_logprobs": []}
    return {"top_logprobs": [{"token": token, "logprob": logprob}, {"token": "?", "logprob": logprob - 1.0}]}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "test"}}, status_code=status)


def _refusal(server: Server, body: dict[str, Any], mode: Mode, header: str) -> Response | None:
    user = body["messages"][-1]["content"]
    if mode == "401":
        return _error(401, f"Incorrect API key provided: {header.removeprefix('Bearer ')}")
    if mode == "429":
        return JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": "0.01"})
    if mode == "500":
        return _error(500, "out of order")
    if mode == "redirect":
        return RedirectResponse("http://127.0.0.1:9/elsewhere", status_code=307)
    if mode == "broken":
        return Response('{"choices": [{"message": {"cont', media_type="application/json")
    if mode == "html":
        return PlainTextResponse("<html>It works!</html>")
    if mode == "empty":
        return JSONResponse({"choices": []})
    if len(user) > server.context:
        return _error(400, f"This model's maximum context length is {server.context} tokens.")
    if body.get("logprobs") and server.logprobs == "refuse":
        return _error(400, "logprobs are not supported")
    if "chat_template_kwargs" in body and not server.thinking_switch:
        return _error(400, "Unrecognized request argument supplied: chat_template_kwargs")
    return None


def make_app(server: Server) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]}

    @app.post("/v1/chat/completions")
    def chat(request: Request, body: dict[str, Any]) -> Response:
        user = body["messages"][-1]["content"]
        with server.lock:
            mode = server.mode(len(server.calls))
            call = {"user": user, "mode": mode, "body": body, "headers": dict(request.headers)}
            server.calls.append(call)
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            refusal = _refusal(server, body, mode, request.headers.get("authorization", ""))
            if refusal is not None:
                call["mode"] = "refused"
                return refusal
            server.over.wait(60) if mode == "slow" else time.sleep(server.delay_s)
            return Response(json.dumps(_completion(server, body, user)), media_type="application/json")
        finally:
            with server.lock:
                server.running -= 1

    return app


@contextmanager
def serve(server: Server) -> Iterator[Server]:
    """Run the server in a thread on a free port until the block ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(make_app(server), log_level="critical", lifespan="off", ws="none")
        runner = uvicorn.Server(config)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not runner.started:
            time.sleep(0.005)
        server.url = f"http://127.0.0.1:{port}/v1"
        try:
            yield server
        finally:
            server.over.set()
            runner.should_exit = True
            thread.join(timeout=10)
