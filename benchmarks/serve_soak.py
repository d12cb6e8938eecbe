"""Faults under load: an upstream that is killed and restarted again and again, and 10,000 hostile bodies.

Every request must end in a whole answer or in a well-formed error that its client raises; none may be lost or mixed up.

    PYTHONPATH=src:. python benchmarks/serve_soak.py --router DIR --index DIR --out docs/results/serve_soak.json
"""

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
from command_line import own_command
from serve_load import child, free_port, wait_for

from tests.hostile_bodies import hostile

CLIENTS = 16
WORDS = "".join(f"word{number} " for number in range(50))


def main() -> None:
    """Run both and write what came of every request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    stub_port, port = free_port(), free_port()
    upstream = f"http://127.0.0.1:{stub_port}/v1"
    stub = child("stub", "--port", str(stub_port))
    wait_for(f"{upstream}/models")
    where = ["--upstream", upstream, "--router", str(given.router), "--index", str(given.index)]
    proxy = subprocess.Popen(
        [sys.executable, "benchmarks/serve_load.py", "--child", "proxy", "--port", str(port), *where]
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ready")
        rows = [{"what": "hostile bodies", **bodies(port, given.bodies)}]
        print(json.dumps(rows[-1]), flush=True)
        found, kills = restarts(f"http://127.0.0.1:{port}/v1", stub, stub_port, given.seconds)
        rows.append({"what": f"streams while the upstream is killed {kills} times", **found})
        print(json.dumps(rows[-1]), flush=True)
        title = "Soak: what came of every request"
        if given.out:
            saved = {"title": title, "command": own_command(), "rows": rows}
            given.out.write_text(json.dumps(saved, indent=1) + "\n")
    finally:
        proxy.terminate()


def bodies(port: int, count: int) -> dict[str, Any]:
    """Statuses of hostile bodies; each answer must be well-formed."""
    found: Counter[int] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number, body in enumerate(hostile(count, seed=11)):
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        found[answer.status] += 1
        if answer.headers["content-type"].startswith("text/event-stream"):
            assert said.endswith(b"data: [DONE]\n\n") or b'"error"' in said, (number, body[:200], said[-200:])
        else:
            assert ("error" in json.loads(said)) == (answer.status != 200), (number, body[:200], said[:200])
    connection.close()
    return {"requests": count, "answered": found.pop(200, 0), "refused": sum(found.values()), "lost": 0}


def restarts(url: str, stub: Any, stub_port: int, seconds: int) -> tuple[dict[str, Any], int]:
    """What clients saw while the upstream came and went, and how often it went."""
    until, found, lock, kills = time.monotonic() + seconds, Counter[str](), threading.Lock(), 0

    def ask_on() -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
            while time.monotonic() < until:
                outcome = ask(client)
                with lock:
                    found[outcome] += 1
                if outcome == "refused":
                    time.sleep(0.1)

    threads = [threading.Thread(target=ask_on) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        time.sleep(3)
        stub.kill()
        stub.wait()
        kills += 1
        stub = child("stub", "--port", str(stub_port))
    for thread in threads:
        thread.join()
    stub.terminate()
    return {"requests": found.total(), "answered": found["whole"], "broken off and said": found["broken"],
            "refused": found["refused"], "lost": found["lost"]}, kills  # fmt: skip


def ask(client: openai.OpenAI) -> str:
    """One paced stream: whole, broken off with an error, refused with a status, or lost (ended without either)."""
    text, messages = "", [{"role": "user", "content": "paced: who founded Bern?"}]
    try:
        for chunk in client.chat.completions.create(model="direct", messages=messages, stream=True):  # type: ignore[call-overload]
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    except openai.APIStatusError:
        return "refused"
    except openai.APIError as error:
        return "broken" if "upstream" in str(error) else "lost"
    return "whole" if text == WORDS else "lost"


if __name__ == "__main__":
    main()
