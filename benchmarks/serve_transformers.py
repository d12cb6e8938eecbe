"""A third-party server behind ours: `transformers serve` with a real model, asked through the openai client.

Each check says what was seen; the program fails where one does not hold. The server runs in an environment of its own:

    python -m venv env && env/bin/pip install 'transformers[serving]' torch
    PYTHONPATH=src:. python benchmarks/serve_transformers.py --transformers env/bin/transformers --model DIR \
        --out docs/results/serve_transformers.json
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from command_line import own_command
from serve_load import free_port

from apportion.serve import Address, Routing, Settings, Upstream, create_app
from tests.integration.serving import get
from tests.integration.upstream_stub import served
from tests.routings import knowing_router, routing

LIMIT = 12
QUESTION = [{"role": "user", "content": "Who founded Bern?"}]
COUNTED: Any = {"include_usage": True}


def main() -> None:
    """Start both servers, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transformers", type=Path, required=True, help="the command of its environment")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    theirs = Theirs(given.transformers.absolute(), given.model.absolute(), free_port())
    rows: list[dict[str, str]] = []
    try:
        theirs.start()
        with tempfile.TemporaryDirectory() as folder, ours(theirs, Path(folder)) as (client, known):
            for check in CHECKS:
                seen = check(client, theirs, known)
                rows.append({"check": str(check.__doc__).rstrip("."), "seen": seen})
                print(json.dumps(rows[-1]), flush=True)
    finally:
        theirs.stop()
    if given.out:
        version = theirs.version()
        title = (
            f"{given.model.parent.name} in transformers serve {version} behind the server: what the openai client saw"
        )
        saved = {"title": title, "command": own_command(), "rows": rows}
        given.out.write_text(json.dumps(saved, indent=1) + "\n")


class Theirs:
    """`transformers serve` as a process, which may be killed and started again."""

    def __init__(self, program: Path, model: Path, port: int) -> None:
        self._program, self._model, self._port = program, model, port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.name = model.name
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until the model is loaded; its working folder gives the model a name without a path."""
        words = [self._program, "serve", self.name, "--host", "127.0.0.1", "--port", str(self._port), "--device", "cpu"]
        others = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self._process = subprocess.Popen(
            [str(word) for word in words], cwd=self._model.parent, env={**others, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 180
        with openai.OpenAI(base_url=self.url, api_key="none", max_retries=0) as client:
            while time.monotonic() < deadline:
                try:
                    client.models.list(timeout=5)
                    return
                except openai.APIConnectionError:
                    assert self._process is not None
                    assert self._process.poll() is None, "transformers serve ended"
                    time.sleep(0.5)
        raise SystemExit("transformers serve did not come up")

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def version(self) -> str:
        """Of the package."""
        python = self._program.parent / "python"
        said = "from importlib.metadata import version; print(version('transformers'))"
        return subprocess.run([python, "-c", said], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def ours(theirs: Theirs, folder: Path) -> Iterator[tuple[openai.OpenAI, Routing]]:
    """Our server before it, with a router whose decisions are known."""
    known = routing(folder, knowing_router())
    app = create_app(known, Upstream(Address(theirs.url)), Settings())
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client, known


def ready(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """It becomes ready, and says whether drafts can be measured."""
    status, found = get(client, "/ready")
    assert status == 200, found
    return f"model {found['model']}; drafts: {found['drafts']}, {found['drafts_reason']}"


def pipelines(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """Every pipeline, plain and streamed, gives one text and one count of tokens."""
    seen = []
    for model in ("auto", "direct", "rag", "cot", "rag-cot"):
        raw = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, max_tokens=LIMIT)
        plain: dict[str, Any] = raw.parse().model_dump()
        chunks = stream(client, model=model, messages=QUESTION, stream_options=COUNTED)
        route = plain["apportion"]["route"]
        assert raw.headers["x-apportion-route"] == route == chunks[0]["apportion"]["route"]
        assert text_of(chunks) == plain["choices"][0]["message"]["content"], (model, text_of(chunks), plain)
        assert chunks[-1]["usage"]["total_tokens"] == plain["usage"]["total_tokens"]
        assert ends(chunks) == [plain["choices"][0]["finish_reason"]]
        assert bool(plain["apportion"]["sources"]) == route.startswith("rag")
        seen.append(f"{model}: {route}, {plain['usage']['total_tokens']} tokens")
    return "; ".join(seen)


def same_as_upstream(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """Forced direct gives the text and the tokens of the same request made to it directly."""
    request = known.request("direct", QUESTION[0]["content"], None)
    messages: Any = [{"role": "system", "content": request.system}, *QUESTION]
    with openai.OpenAI(base_url=theirs.url, api_key="none") as direct:
        mine: Any = client.chat.completions.create(model="direct", messages=QUESTION, max_tokens=LIMIT)  # type: ignore[call-overload]
        theirs_own = direct.chat.completions.create(
            model=theirs.name, messages=messages, max_tokens=LIMIT, temperature=0, stop=list(request.stop)
        )
    assert mine.choices[0].message.content == theirs_own.choices[0].message.content
    assert theirs_own.usage is not None
    assert mine.usage.total_tokens == theirs_own.usage.total_tokens
    return f"{mine.usage.total_tokens} tokens, {mine.choices[0].message.content!r}"


def unmeasured(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """Without log-probabilities the draft-free tier decides, and says so."""
    found = ask(client, "auto")["apportion"]
    assert found["tier"] == "lean", found
    assert any(said.startswith("no draft probe") for said in found["weaker"]), found
    return f"tier {found['tier']}; weaker: {'; '.join(found['weaker'])}"


def passed_on(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """Greetings, tools and chat parameters go to it as they were sent."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    seen = []
    for more in ({"messages": [{"role": "user", "content": "Hello!"}]}, {"tools": [tool]}, {"seed": 1, "top_p": 0.9}):
        found = ask(client, "auto", **more)["apportion"]
        seen.append(f"{', '.join(more)}: {found['reason']}")
    return "; ".join(seen)


def conversation(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """A follow-up is searched for in its conversation, with the client's system prompt kept."""
    turns = [{"role": "system", "content": "Be brief."}, *QUESTION, {"role": "assistant", "content": "Berthold."}]
    found = ask(client, "rag", messages=[*turns, {"role": "user", "content": "And when?"}])["apportion"]
    assert found["sources"][0]["id"] == "bern", found
    return f"sources {', '.join(one['id'] for one in found['sources'])}"


def refused(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """What it refuses is told in OpenAI's shape, with its own words."""
    with_field: Any = {"extra_body": {"no_such_field": 1}}
    try:
        ask(client, "cot", **with_field)
    except openai.APIStatusError as error:
        status, body = error.status_code, error.body
    told: Any = body
    assert told["message"].startswith("upstream: Unexpected fields"), told
    return f"HTTP {status}: {told['message']}"


def together(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """Eight clients at once get their own answers."""
    words = ("red", "blue", "green", "white")
    asked = [[{"role": "user", "content": f"Repeat this word: {word}"}] for word in words] * 2
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda one: ask(client, "direct", messages=one)["choices"][0]["message"], asked))
    texts = [one["content"] for one in found]
    assert texts[:4] == texts[4:], texts
    return f"{len(set(texts))} different answers to {len(words)} questions, each asked twice"


def left(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """A client that leaves its stream frees the server for the next one."""
    chunks = client.chat.completions.create(model="cot", messages=QUESTION, max_tokens=2000, stream=True)  # type: ignore[call-overload]
    next(iter(chunks))
    chunks.close()
    start = time.perf_counter()
    ask(client, "direct", max_tokens=1)
    took = time.perf_counter() - start
    assert took < 60, took
    return "the next answer came at once, not after 2,000 tokens" if took < 20 else f"after {took:.0f} s"


def restarted(client: openai.OpenAI, theirs: Theirs, known: Routing) -> str:
    """Killed in mid-stream it is an error in the stream; started again it is used again."""
    chunks = client.chat.completions.create(model="cot", messages=QUESTION, max_tokens=500, stream=True)  # type: ignore[call-overload]
    next(iter(chunks))
    theirs.stop()
    try:
        for _ in chunks:
            pass
        raise SystemExit("the stream ended as if it were whole")
    except openai.APIError as error:
        told = error.message
    status, said = get(client, "/ready")
    assert status == 503, said
    theirs.start()
    status, found = get(client, "/ready")
    assert status == 200, found
    ask(client, "direct", max_tokens=1)
    return f"{told}; then it is not ready, then it is"


CHECKS: tuple[Callable[[openai.OpenAI, Theirs, Routing], str], ...] = (
    ready, pipelines, same_as_upstream, unmeasured, passed_on, conversation, refused, together, left, restarted,
)  # fmt: skip


def ask(client: openai.OpenAI, model: str, **more: Any) -> dict[str, Any]:
    """A plain answer."""
    asked: Any = {"model": model, "messages": QUESTION, "max_tokens": LIMIT, **more}
    return dict(client.chat.completions.create(**asked).model_dump())


def stream(client: openai.OpenAI, **asked: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer."""
    return [one.model_dump() for one in client.chat.completions.create(stream=True, max_tokens=LIMIT, **asked)]


def text_of(chunks: list[dict[str, Any]]) -> str:
    """The text that streamed."""
    return "".join(one["choices"][0]["delta"]["content"] or "" for one in chunks if one["choices"])


def ends(chunks: list[dict[str, Any]]) -> list[str]:
    """The finish reasons that streamed."""
    found = [one["choices"][0]["finish_reason"] for one in chunks if one["choices"]]
    return [one for one in found if one]


if __name__ == "__main__":
    main()
