"""Four pipelines of one real model on six question-answering benchmarks (and a seventh), with tokens and latency.

    python benchmarks/six_data.py --qa DIR --corpora DIR --recorded FILE.parquet --out DATA
    python benchmarks/six.py run --data DATA --llm MODEL --work WORK [--batch 96] [--unloaded 70] [--limit N]
    python benchmarks/six.py collect --data DATA --work WORK --llm NAME --out docs/results

`run` profiles on the full corpus, then on the one with gaps (answers that saw no passage are not asked for again);
it goes on where it was cut. `collect` writes the profiles by half, without texts but with features and outcomes
(six_learn.parquet, six_judge.parquet, six_gap_*.parquet), and six.json: quality, tokens, latency and extraction
failures by set and pipeline, and how often the answer stands in the passages.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_line import own_command

from apportion.core.artifact import plain, read_json, versions, write_json
from apportion.core.log import AppendLog
from apportion.route.ask.evidence import answer_features
from apportion.route.ask.extraction import FAILED
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.index import Bm25Index, Hits, build_index, read_corpus
from apportion.route.llm import LLM, Completion, LLMSettings, Request, connect
from apportion.route.profile.file import write_profile
from apportion.route.profile.latency import fit_latency
from apportion.route.profile.profile import Outcome
from apportion.route.profile.questions import Question, read_questions
from apportion.route.profile.records import ALONE, Measured, question_key
from apportion.route.profile.run import run_profile
from apportion.route.profile.scoring import normalise

CORPORA = {"six": "corpus", "six_gap": "corpus_gap"}
BLIND = ("direct", "cot", ALONE + "direct", ALONE + "cot")  # see no passage, so the corpus changes nothing
K = 5


def open_index(data: Path, work: Path, corpus: str) -> Bm25Index:
    folder = work / f"index_{corpus}"
    if (folder / "manifest.json").is_file():
        return Bm25Index.open(folder)
    return build_index(read_corpus(data / f"{corpus}.jsonl"), folder)


def run(given: argparse.Namespace) -> None:
    questions = read_questions(given.data / "questions.jsonl", limit=given.limit)
    llm = connect(
        LLMSettings(given.llm, given.model, batch_size=given.batch, device=given.device, concurrency=given.concurrency)
    )
    setups = {
        name: Setup(llm, open_index(given.data, given.work, corpus), load_prompts(given.prompts), K)
        for name, corpus in CORPORA.items()
    }
    for name, setup in setups.items():
        out = given.work / f"{name}.parquet"
        if name == "six_gap":
            share_blind(questions, setups["six"], setup, given.work)
        start = time.monotonic()
        report = run_profile(
            questions, setup, out, resume=True, unloaded=given.unloaded, on_preflight=lambda found: print(found)
        )
        asked = report.rows - report.resumed
        speed = {"answers": asked, "seconds": time.monotonic() - start, "generation": report.generation}
        print(name, json.dumps(plain(report.pipelines), indent=1), report.latency, speed, sep="\n", flush=True)
        write_json(given.work / f"{name}_report.json", {**plain(report), "speed": speed})


def share_blind(questions: Sequence[Question], full: Setup, gap: Setup, work: Path) -> None:
    """Begin the second profile's log with the answers of the first that saw no passage."""
    path = work / "six_gap.parquet.log"
    if path.exists():
        return
    by_key = {question_key(one): one for one in questions}
    with (
        AppendLog(work / "six.parquet.log", header(full), resume=True) as done,
        AppendLog(path, header(gap), resume=False) as log,
    ):
        for record in done.records:
            if record["strategy"] not in BLIND or record.get("error") or record["question"] not in by_key:
                continue
            if record["strategy"] == "direct":  # what the passages hold of the draft does depend on them
                asked = by_key[record["question"]].question
                found = gap.retriever.search(asked, gap.k).passages
                record = {**record, "features": answer_features("draft", record["answer"], asked, found)}
            log.append(record)


def header(setup: Setup) -> dict[str, Any]:
    source = setup.source()
    return {"model": source.model, "corpus": source.corpus, "prompts": source.prompts, "k": source.k}


class Recorded:
    """Stands for the model where only its name is wanted."""

    has_logprobs, logprobs_reason, concurrency, batch_size = True, "recorded", 1, 1

    def __init__(self, name: str) -> None:
        self.model, self.name = name, name

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        raise NotImplementedError("nothing is asked while results are collected")

    def close(self) -> None:
        """Nothing is held."""


def collect(given: argparse.Namespace) -> None:
    data = read_json(given.data / "data.json")
    questions = read_questions(given.data / "questions.jsonl")
    tables: dict[str, Any] = {}
    for name, corpus in CORPORA.items():
        path = given.work / f"{name}.parquet.log"
        if not path.is_file():
            tables[name] = {"not_run": f"{path.name} is not there"}
            continue
        index, log = open_index(given.data, given.work, corpus), read_log(path)
        llm: LLM = Recorded(given.llm or log["header"]["model"])
        measured = Measured()
        for record in log["records"]:
            measured.add(record)
        model = fit_latency(measured.alone())
        whole = [one for one in questions if measured.count([one], STRATEGIES) == len(STRATEGIES)]
        rows = [row for one in whole for row in measured.outcomes(one, model)]
        source = replace(Setup(llm, index, load_prompts(given.prompts), K).source(), latency=str(model))
        source = replace(source, prompts=log["header"]["prompts"], corpus=log["header"]["corpus"])
        for half in ("learn", "judge"):
            chosen = [row for row in rows if data["halves"][f"{row.dataset}/{row.question_id}"] == half]
            write_profile(given.out / f"{name}_{half}.parquet", [without_texts(row) for row in chosen], source)
        tables[name] = {
            "questions_of_all": [len(whole), len(questions)],
            "timed_alone": len(measured.alone()),
            "sets": {one: by_pipeline([row for row in rows if row.dataset == one]) for one in data["questions"]},
            "all": by_pipeline(rows),
            "answer_in_top_k": dict(in_passages(questions, index)),
            "latency": str(model),
            "report": read_report(given.work / f"{name}_report.json"),
        }
    counted = {key: value for key, value in data.items() if key not in ("halves", "without_gold")}
    found = {"command": own_command(), "note": given.note, "model": given.llm, "data": counted, "k": K, **tables}
    write_json(given.out / "six.json", {**found, "versions": versions("torch", "transformers", "tantivy")})


def read_log(path: Path) -> dict[str, Any]:
    """Header and records, whatever they were made from."""
    lines = [json.loads(line[9:]) for line in path.read_text(encoding="utf-8").splitlines()]
    return {"header": lines[0], "records": lines[1:]}


def read_report(path: Path) -> Any:
    """What `run` said at its end; nothing of a run that was cut."""
    return read_json(path) if path.is_file() else None


def without_texts(row: Outcome) -> Outcome:
    """The same outcome without the question, gold answers, answer and completion."""
    return replace(row, question="", answers=(), answer="", completion=None)


def by_pipeline(rows: Sequence[Outcome]) -> dict[str, Any]:
    """Means by strategy; extraction failures as a share."""
    found: dict[str, Any] = {}
    for name in STRATEGIES:
        mine = [row for row in rows if row.strategy == name]
        if not mine:
            continue
        n = len(mine)
        found[name] = {
            "answers": n,
            "f1": sum(row.f1 or 0.0 for row in mine) / n,
            "em": sum(row.em or 0.0 for row in mine) / n,
            "prompt_tokens": sum(row.prompt_tokens or 0 for row in mine) / n,
            "cached_tokens": sum(row.cached_tokens or 0 for row in mine) / n,
            "completion_tokens": sum(row.completion_tokens or 0 for row in mine) / n,
            "latency_ms": sum(row.latency_ms or 0.0 for row in mine) / n,
            "not_extracted": sum(row.rule in FAILED for row in mine) / n,
            "by_pattern": sum(row.rule == "pattern" for row in mine) / n,
            "ended_by_max_tokens": sum(row.finish == "length" for row in mine) / n,
        }
    best: dict[str, float] = {}
    for row in rows:
        best[f"{row.dataset}/{row.question_id}"] = max(best.get(f"{row.dataset}/{row.question_id}", 0.0), row.f1 or 0.0)
    return {**found, "best_of_four": sum(best.values()) / len(best) if best else None}


def in_passages(questions: Sequence[Question], index: Bm25Index) -> Iterator[tuple[str, float]]:
    """By set, the share of questions whose top k passages hold a gold answer."""
    for name in dict.fromkeys(one.dataset for one in questions):
        mine = [one for one in questions if one.dataset == name]
        yield name, sum(held(index.search(one.question, K), one.answers) for one in mine) / len(mine)


def held(hits: Hits, answers: Sequence[str]) -> bool:
    text = f" {normalise(' '.join(f'{one.title} {one.text}' for one in hits.passages))} "
    return any(f" {normalise(answer)} " in text for answer in answers if normalise(answer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("run", "collect"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--model")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--unloaded", type=int, default=70)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--note", default="", help="said in six.json, for example what cut a run")
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    run(given) if given.step == "run" else collect(given)


if __name__ == "__main__":
    main()
