"""Answers a second of a model in this process, before and after: growing batches against slots, in one run.

    python benchmarks/generation.py --data DATA --llm MODEL --out FILE.json [--batch 64] [--questions 192]

DATA is what six_data.py wrote. `batches` is the way of before (one batch at a time, a cache that grows), `slots` the
way of now without and with recorded steps. The texts of all three are compared.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from command_line import own_command

from apportion.core.artifact import plain, versions, write_json
from apportion.route.ask import STRATEGIES, build_request, load_prompts
from apportion.route.index import build_index, read_corpus
from apportion.route.llm import Request
from apportion.route.llm.local import LocalLLM
from apportion.route.profile import read_questions

K = 5
Asked = dict[str, list[Request]]


def requests(data: Path, count: int) -> Asked:
    """The four requests of each question."""
    prompts, questions = load_prompts(), read_questions(data / "questions.jsonl", limit=count)
    with tempfile.TemporaryDirectory() as folder:
        index = build_index(read_corpus(data / "corpus.jsonl"), Path(folder) / "index")
        found = [(one.question, index.search(one.question, K).passages) for one in questions]
    return {
        name: [build_request(prompts, name, text, passages, logprobs="cot" not in name) for text, passages in found]
        for name in STRATEGIES
    }


def timed(llm: LocalLLM, asked: Asked, mode: str, *, graph: bool, batch: int) -> tuple[dict[str, float], list[str]]:
    """Answers a second by strategy and in all, and the texts."""
    how = llm.generation
    how.mode, how.graph = mode, graph
    speeds, texts = {}, []
    for name, every in asked.items():
        llm.complete(every[:8])  # what a first call sets up is not part of it
        start = time.perf_counter()
        size = batch if mode == "batches" else len(every)
        done = [one for at in range(0, len(every), size) for one in llm.complete(every[at : at + size])]
        speeds[name] = len(every) / (time.perf_counter() - start)
        texts += [one.text for one in done]
    speeds["all"] = len(asked) / sum(1 / speeds[name] for name in asked)
    return speeds, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--questions", type=int, default=192)
    given = parser.parse_args()
    asked = requests(given.data, given.questions)
    llm = LocalLLM.open(given.llm, batch_size=given.batch)
    found: dict[str, Any] = {"command": own_command(), "model": llm.name, "batch": given.batch}
    found["questions"] = given.questions
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["versions"] = versions("torch", "transformers")
    texts: dict[str, list[str]] = {}
    for label, mode, graph in (
        ("slots, recorded", "slots", True),
        ("slots", "slots", False),
        ("batches", "batches", False),
    ):
        if graph and not torch.cuda.is_available():
            continue
        speeds, texts[label] = timed(llm, asked, mode, graph=graph, batch=given.batch)
        found[label] = {"answers_per_second": speeds, "generation": plain(llm.generation)}
        print(label, json.dumps(found[label]), flush=True)
        write_json(given.out, found)  # as it grows, since the last way is the slowest
    before = texts["batches"]
    found["same_text_as_batches"] = {
        label: sum(one == other for one, other in zip(mine, before, strict=True)) / len(before)
        for label, mine in texts.items()
    }
    write_json(given.out, found)


if __name__ == "__main__":
    main()
