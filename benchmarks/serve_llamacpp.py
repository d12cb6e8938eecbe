"""Time to the first and to the last token through the server and from llama.cpp itself, with a real model.

The same questions, the same Direct prompt and limit, one at a time, in turn so that a busy machine hurts both alike:

    upstream   llama.cpp (xllamacpp) asked directly, streamed
    direct     through the server, Direct forced: no probe
    draft      through the server, a router that drafts and keeps every draft: the draft is the answer

    PYTHONPATH=src:. python benchmarks/serve_llamacpp.py --model model.gguf --out docs/results/serve_llamacpp.json
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import uvicorn
from command_line import own_command

from apportion.serve import Address, Routing, Settings, Upstream, create_app
from apportion.serve.run import Impatient, listen
from tests.routings import knowing_router, routing

QUESTIONS = (
    "What is the capital of France?", "Who wrote Hamlet?", "What colour is the sky?", "How many days has a week?",
    "What is the largest planet?", "Which ocean is the deepest?", "What do bees make?", "Who painted the Mona Lisa?",
    "What is water made of?", "Which animal barks?", "What is the opposite of hot?", "How many legs has a spider?",
)  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    upstream, server = llama_cpp(given.model, given.threads)
    with tempfile.TemporaryDirectory() as folder:
        known = routing(Path(folder), keeping_router())
        url = serve(known, upstream)
        places = {"upstream": (upstream, "x"), "direct": (url, "direct"), "draft": (url, "auto")}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
        for _ in range(given.rounds):
            for question in QUESTIONS:
                for name, (where, model) in places.items():
                    times[name].append(ask(where, model, known, question, plain=name == "upstream"))
    base, rows = times["upstream"], []
    for name, pairs in times.items():
        row: dict[str, Any] = {"asked": name}
        for n, what in enumerate(("first", "last")):
            row[f"{what}_token_ms"] = round(statistics.median(one[n] for one in pairs), 1)
            ratios = [one[n] / other[n] for one, other in zip(pairs, base, strict=True)]
            row[f"{what}_token_of_upstreams"] = round(statistics.median(ratios), 3)
        rows.append(row)
    name = given.model.resolve().parent.name
    title = f"Time to first and last token, {name} in llama.cpp, medians of {len(base)} questions"
    print(json.dumps(rows))
    if given.out:
        saved = {"title": title, "command": own_command(), "rows": rows}
        given.out.write_text(json.dumps(saved, indent=1) + "\n")
    del server


def llama_cpp(model: Path, threads: int) -> tuple[str, Any]:
    """llama.cpp on a free port."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.n_ctx, settings.n_parallel, settings.warmup = 2048, 1, True
    settings.cpuparams.n_threads = threads
    server = xllamacpp.Server(settings)
    return f"{server.listening_address}/v1", server


def keeping_router() -> Any:
    """A router that drafts every question and takes the draft, however unsure it is."""
    router = knowing_router()
    full = router.tiers[0]
    decider = replace(full.decider, reader=replace(full.decider.reader, mean=np.array([0.0, 1e6, 1e6])))
    return replace(router, tiers=(replace(full, decider=decider),))


def serve(known: Routing, upstream: str) -> str:
    """Our server in a thread."""
    listening = listen("127.0.0.1", 0)
    app = create_app(known, Upstream(Address(upstream)), Settings())
    server = uvicorn.Server(uvicorn.Config(app, http=Impatient, log_level="warning", access_log=False))
    threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def ask(url: str, model: str, known: Routing, question: str, *, plain: bool) -> tuple[float, float]:
    """Milliseconds to the first and to the last piece of text."""
    messages: Any = [{"role": "user", "content": question}]
    more: dict[str, Any] = {"extra_body": {"cache_prompt": False}}  # else who asks second finds the prompt computed
    if plain:  # what our server asks for Direct
        request = known.request("direct", question, None)
        messages = [{"role": "system", "content": request.system}, *messages]
        more |= {"temperature": 0, "max_tokens": request.max_tokens}
    first = last = 0.0
    with openai.OpenAI(base_url=url, api_key="none") as client:
        client.models.list()  # the connection is there already
        start = time.perf_counter()
        for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, **more):
            if chunk.choices and chunk.choices[0].delta.content:
                last = (time.perf_counter() - start) * 1000
                first = first or last
    return first, last


if __name__ == "__main__":
    main()
