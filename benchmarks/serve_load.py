"""What the server costs: latency added to forced `direct`, and requests a second, against a stub upstream.

Three processes on one machine: the stub, the server, and a public load tool (`hey`, from Debian). The stub answers 50
tokens, at once or paced like a model. Every figure of the server stands beside the same figure of the stub alone, and,
where `--litellm URL` names its proxy in front of the same stub, beside that; all in one run. "staggered" are 32 clients
that each begin at another time of an answer's second, as people do; one `hey` with 32 clients starts all of them at
once, and paced answers of equal length keep them in step.

    python benchmarks/serve_load.py --router DIR --index DIR --out docs/results/serve_load.json
"""

import argparse
import asyncio
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from command_line import own_command

TITLE = "What the server costs: 32 at once, answers of 50 tokens, a stub upstream, forced direct, two shared cores"
KEY = "sk-load-test-0123456789abcdef"  # of a LiteLLM proxy that is measured beside ours; ours and the stub need none
TOKENS = 50
PACE_S = 0.02  # 50 tokens a second, as a small model on a GPU
KINDS = ("plain", "stream", "paced stream", "paced stream, staggered")
CLIENTS = 32
QUESTION = {"model": "direct", "messages": [{"role": "user", "content": "Who founded the city of Bern, and when?"}]}


def main() -> None:
    """Measure, or be one of the processes measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", choices=["stub", "proxy"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--upstream", default="")
    parser.add_argument("--router", type=Path)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--litellm", default="", help="URL of LiteLLM's proxy in front of the stub at --stub-port")
    parser.add_argument("--stub-port", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=0, help="also send so many plain ones and watch the memory")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.child == "stub":
        run_stub(given.port)
    elif given.child == "proxy":
        run_proxy(given.port, given.upstream, given.router, given.index)
    else:
        measure(given)


def run_stub(port: int) -> None:
    """The stub: raw ASGI, so that it costs as little as a server in Python can."""
    import uvicorn

    base: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "stub"}

    def event(choices: list[Any], **more: Any) -> bytes:
        return b"data: " + json.dumps({**base, "choices": choices, **more}).encode() + b"\n\n"

    usage = {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS}
    words = [event([{"index": 0, "delta": {"content": f"word{n} "}, "finish_reason": None}]) for n in range(TOKENS)]
    first = event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    last = event([{"index": 0, "delta": {}, "finish_reason": "stop"}]) + event([], usage=usage) + b"data: [DONE]\n\n"
    message = {"role": "assistant", "content": " ".join(f"word{n}" for n in range(TOKENS))}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "stub", "usage": usage}
    plain = json.dumps({**whole, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    models = json.dumps({"object": "list", "data": [{"id": "stub", "object": "model"}]}).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        raw = b""
        while True:
            part = await receive()
            raw += part.get("body", b"")
            if not part.get("more_body"):
                break
        body = json.loads(raw or b"{}")
        streams = bool(body.get("stream"))
        kind = b"text/event-stream" if streams else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if not streams:
            await send({"type": "http.response.body", "body": plain if body else models})
            return
        paced = "paced" in str(body["messages"][-1]["content"])
        for piece in [first, *words, last]:
            if paced:
                await asyncio.sleep(PACE_S)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", access_log=False, lifespan="off")


def run_proxy(port: int, upstream: str, router: Path, index: Path) -> None:
    """Our server; the router's own model is another, which does not matter where `direct` is forced."""
    from apportion.serve import Address, Settings, Upstream, create_app
    from apportion.serve.routing_files import open_routing
    from apportion.serve.run import listen, run

    routing = open_routing(router, index, None, None, None, compared=False)
    app = create_app(routing, Upstream(Address(upstream)), Settings(concurrency=256))
    run(app, [listen("127.0.0.1", port)])


def measure(given: argparse.Namespace) -> None:
    """All the figures, side by side."""
    assert shutil.which("hey"), "hey is not installed: apt-get install hey"
    stub_port, proxy_port = given.stub_port or free_port(), free_port()
    stub = child("stub", "--port", str(stub_port))
    wait_for(f"http://127.0.0.1:{stub_port}/v1/models")
    upstream = f"http://127.0.0.1:{stub_port}/v1"
    where = ["--upstream", upstream, "--router", str(given.router), "--index", str(given.index)]
    proxy = child("proxy", "--port", str(proxy_port), *where)
    try:
        wait_for(f"http://127.0.0.1:{proxy_port}/ready")
        places = {"stub": upstream, "apportion": f"http://127.0.0.1:{proxy_port}/v1"}
        if given.litellm:
            places["litellm"] = given.litellm
        rows = []
        for kind in KINDS if not given.only else given.only:
            for name, url in places.items():
                load(url, kind, 2, None)  # connections and caches of all are warm
                busy = os.getloadavg()[0]
                pid = {"stub": stub.pid, "apportion": proxy.pid}.get(name)
                rows.append(
                    {"asked": kind, "server": name, **load(url, kind, given.seconds, pid), "load_average": busy}
                )
                print(json.dumps(rows[-1]), flush=True)
        saved = {"title": TITLE, "command": own_command(), "rows": rows}
        if given.requests:
            saved["memory"] = memory(proxy.pid, places["apportion"], given.requests)
            print(json.dumps(saved["memory"]), flush=True)
        if given.out:
            given.out.write_text(json.dumps(saved, indent=1) + "\n")
    finally:
        proxy.terminate()
        stub.terminate()


def load(url: str, kind: str, seconds: int, pid: int | None) -> dict[str, float | None]:
    """Rate and latencies with 32 at once, by hey; no 99 % quantile of fewer than a hundred answers.

    Also the processor time of the server an answer, which other jobs on the machine hardly change.
    """
    body: dict[str, Any] = {**QUESTION, "stream": kind != "plain"}
    if "litellm" in url or not url:
        body["model"] = "direct"
    if kind.startswith("paced"):
        body["messages"] = [{"role": "user", "content": "paced: who founded Bern?"}]
    asked = ["-m", "POST", "-T", "application/json", "-H", f"Authorization: Bearer {KEY}", "-d", json.dumps(body)]
    before, where = cpu_s(pid), f"{url}/chat/completions"
    if kind.endswith("staggered"):
        taken = staggered([*asked, where], seconds)
        spent_ms = 0.0 if pid is None else 1000 * (cpu_s(pid) - before)
        return {
            "requests_per_s": len(taken) / seconds,
            "p50_ms": quantile(taken, 0.5),
            "p99_ms": quantile(taken, 0.99) if len(taken) >= 100 else None,
            "cpu_ms_an_answer": None if pid is None else round(spent_ms / len(taken), 3),
        }
    command = ["hey", "-z", f"{seconds}s", "-c", str(CLIENTS), *asked, where]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent_ms = None if pid is None else 1000 * (cpu_s(pid) - before)
    statuses = {int(code): int(count) for code, count in re.findall(r"\[(\d+)\]\s+(\d+) responses", said)}
    quantiles = {int(share): 1000 * float(took) for share, took in re.findall(r"(\d+)%+ in ([\d.]+) secs", said)}
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert rate, said
    assert set(statuses) == {200}, said
    cpu_ms = None if spent_ms is None else round(spent_ms / statuses[200], 3)
    return {
        "requests_per_s": float(rate[1]),
        "p50_ms": quantiles[50],
        "p99_ms": quantiles.get(99),
        "cpu_ms_an_answer": cpu_ms,
    }


def staggered(asked: list[str], seconds: int) -> list[float]:
    """Milliseconds of every answer but each client's first, of clients that begin one after the other."""
    started = []
    for _ in range(CLIENTS):
        command = ["hey", "-z", f"{seconds}s", "-c", "1", "-o", "csv", *asked]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        time.sleep(TOKENS * PACE_S / CLIENTS)
    rows = [list(csv.DictReader(client.communicate()[0].splitlines()))[1:] for client in started]
    found = [row for client in rows for row in client]
    assert {row["status-code"] for row in found} == {"200"}
    return sorted(1000 * float(row["response-time"]) for row in found)


def quantile(ordered: list[float], share: float) -> float:
    """The smallest value that this share of the others does not exceed."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def cpu_s(pid: int | None) -> float:
    """Processor seconds of a process so far; 0 for none."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, url: str, requests: int) -> dict[str, Any]:
    """Resident memory of the server after each tenth of many requests."""
    body = json.dumps(QUESTION)
    sizes = []
    for _ in range(10):
        command = ["hey", "-n", str(requests // 10), "-c", "32", "-m", "POST", "-T", "application/json", "-d", body]
        subprocess.run([*command, f"{url}/chat/completions"], capture_output=True, check=True)
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        sizes.append(round(int(found[1]) / 1024, 1))
    return {"requests": requests, "resident_mb": sizes}


def child(kind: str, *arguments: str) -> subprocess.Popen[bytes]:
    """One of the processes."""
    return subprocess.Popen([sys.executable, __file__, "--child", kind, *arguments])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(url: str) -> None:
    """Until it answers."""
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


if __name__ == "__main__":
    main()
