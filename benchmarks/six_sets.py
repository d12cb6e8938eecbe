"""Four pipelines of one real model on six question-answering benchmarks (and a seventh), with tokens and latency.

    python benchmarks/six_data.py --qa DIR --corpora DIR --recorded FILE.parquet --out DATA
    python benchmarks/six_sets.py run --data DATA --llm MODEL --work WORK [--batch 96] [--unloaded 70] [--limit N]
        [--shard 1/3] [--half judge] [--corpora six,six_gap] [--from LOG ... [--keep-times]]
        [--label _3bit]
    python benchmarks/six_sets.py collect --data DATA --work WORK --llm NAME --out docs/results [--label _3bit]

`run` profiles on the full corpus, then on the one with gaps (answers that saw no passage are not asked for again);
it goes on where it was cut. Shards are runs of their own, each with its log, at the same time on several GPUs; times
are taken by those with `--unloaded`. `--from` begins with the answers of other runs' logs on the same corpus, and
with their times where `--keep-times` says that nothing else is compared with them. Reasoning without an answer that
was recorded before such answers were asked for once more is asked anew; `--reask` does so too with those that were
asked for once more, as after another wording of that turn.
`collect` reads all logs of a label and writes the profiles by half, without texts but with features and outcomes
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
from apportion.route.ask.pipelines import build_request
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.index import Bm25Index, Hits, build_index, read_corpus
from apportion.route.llm import LLM, Completion, LLMSettings, Request, connect
from apportion.route.profile.file import write_profile
from apportion.route.profile.latency import fit_latency
from apportion.route.profile.profile import Outcome
from apportion.route.profile.questions import Question, read_questions
from apportion.route.profile.records import ALONE, Measured, is_unasked, question_key
from apportion.route.profile.run import run_profile, spread
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
    questions = asked_of(given)
    llm = connect(
        LLMSettings(given.llm, given.model, batch_size=given.batch, device=given.device, concurrency=given.concurrency)
    )
    setups = {
        name: Setup(llm, open_index(given.data, given.work, corpus), load_prompts(given.prompts), K)
        for name, corpus in CORPORA.items()
        if name in given.corpora.split(",")
    }
    for name, setup in setups.items():
        out = given.work / f"{file_name(name, given)}.parquet"
        if given.begin:
            take_answers(questions, setup, given.begin, out, times=given.keep_times, reask=given.reask)
        if name == "six_gap" and "six" in setups:
            share_blind(questions, setups["six"], setup, given.work / f"{file_name('six', given)}.parquet.log", out)
        if given.unloaded:
            warm(spread(questions, given.unloaded), setup)
        start = time.monotonic()
        report = run_profile(
            questions, setup, out, resume=True, unloaded=given.unloaded, on_preflight=lambda found: print(found)
        )
        asked = report.rows - report.resumed
        speed = {"answers": asked, "seconds": time.monotonic() - start, "generation": report.generation}
        print(name, json.dumps(plain(report.pipelines), indent=1), report.latency, speed, sep="\n", flush=True)
        begun = {"answers_of": [path.name for path in given.begin]} if given.begin and name == "six" else {}
        write_json(out.with_name(f"{out.stem}_report.json"), {**plain(report), "speed": speed, **begun})


def asked_of(given: argparse.Namespace) -> list[Question]:
    """The questions of this run: of a half, of a shard."""
    questions = list(read_questions(given.data / "questions.jsonl", limit=given.limit))
    if given.half:
        halves = read_json(given.data / "data.json")["halves"]
        questions = [one for one in questions if halves[f"{one.dataset}/{one.id}"] == given.half]
    shard, of = (int(part) for part in given.shard.split("/"))
    if not 1 <= shard <= of:
        raise SystemExit(f"--shard {given.shard}: expected 1/N to N/N")
    return questions[shard - 1 :: of]


def file_name(name: str, given: argparse.Namespace) -> str:
    """What a profile and its log are called: corpus, label, shard."""
    shard = "" if given.shard == "1/1" else "." + given.shard.replace("/", "-of-")
    return f"{name}{given.label}{shard}"


def warm(questions: Sequence[Question], setup: Setup) -> None:
    """Single calls of every length, longest first, so that what is recorded at a length's first use is no part of
    the times that are taken."""
    asked = []
    for one in questions:
        found = setup.retriever.search(one.question, setup.k).passages
        asked += [build_request(setup.prompts, name, one.question, found) for name in STRATEGIES]
    for at, request in enumerate(sorted(asked, key=lambda one: -len(one.system + one.user))):
        setup.llm.complete([request if at == 0 else replace(request, max_tokens=2)])


def take_answers(
    questions: Sequence[Question], setup: Setup, begin: Sequence[Path], out: Path, *, times: bool, reask: bool
) -> None:
    """Begin a log with other runs' answers to the same prompts on the same corpus; their times only where asked."""
    path, wanted = out.with_name(out.name + ".log"), header(setup)
    if path.exists():
        return
    logs = {place: read_log(place) for place in begin}
    unlike = [
        place for place, log in logs.items() if any(log["header"][key] != wanted[key] for key in ("prompts", "k"))
    ]
    if unlike:
        raise SystemExit(f"--from {', '.join(map(str, unlike))}: made with other prompts or another k")
    fitting = [log for log in logs.values() if log["header"]["corpus"] == wanted["corpus"]]
    print(f"{out.stem}: begins with {len(fitting)} of {len(logs)} logs, the others are of another corpus", flush=True)
    keys = {question_key(one) for one in questions}
    with AppendLog(path, wanted, resume=False) as log:
        for record in (record for found in fitting for record in found["records"]):
            kept = times or not record["strategy"].startswith(ALONE)
            kept = kept and not (reask and record.get("again") is not None)
            if kept and record["question"] in keys and not record.get("error") and not is_unasked(record):
                log.append(record)


def share_blind(questions: Sequence[Question], full: Setup, gap: Setup, answered: Path, out: Path) -> None:
    """The answers of the first profile that saw no passage, in the second's log where it has none of its own."""
    path = out.with_name(out.name + ".log")
    by_key = {question_key(one): one for one in questions}
    with (
        AppendLog(answered, header(full), resume=True) as done,
        AppendLog(path, header(gap), resume=True) as log,
    ):
        there = Measured()
        for record in log.records:
            there.add(record)
        for record in done.records:
            if record["strategy"] not in BLIND or record.get("error") or record["question"] not in by_key:
                continue
            if is_unasked(record) or there.is_done(record["question"], record["strategy"]):
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
        paths = logs_of(f"{name}{given.label}", given.work)
        if not paths:
            tables[name] = {"not_run": f"no log {name}{given.label}*.parquet.log is there"}
            continue
        index, log = open_index(given.data, given.work, corpus), joined([read_log(path) for path in paths])
        llm: LLM = Recorded(given.llm or log["header"]["model"])
        measured = Measured()
        for record in log["records"]:
            measured.add(record)
        model = fit_latency(measured.alone())
        whole = [one for one in questions if has_all(measured, one)]
        rows = [row for one in whole for row in measured.outcomes(one, model)]
        source = replace(Setup(llm, index, load_prompts(given.prompts), K).source(), latency=str(model))
        source = replace(source, prompts=log["header"]["prompts"], corpus=log["header"]["corpus"])
        for half in ("learn", "judge"):
            chosen = [row for row in rows if data["halves"][f"{row.dataset}/{row.question_id}"] == half]
            if chosen:
                out = given.out / f"{name}{given.label}_{half}.parquet"
                write_profile(out, [without_texts(row) for row in chosen], source)
        tables[name] = {
            "questions_of_all": [len(whole), len(questions)],
            "timed_alone": len(measured.alone()),
            "not_asked_again": sum(map(is_unasked, measured.records.values())),
            "sets": {one: by_pipeline([row for row in rows if row.dataset == one]) for one in data["questions"]},
            "all": by_pipeline(rows),
            "answer_in_top_k": dict(in_passages(questions, index)),
            "latency": str(model),
            "logs": [path.name for path in paths],
            "reports": [read_report(path.with_name(path.name.split(".parquet")[0] + "_report.json")) for path in paths],
        }
    counted = {key: value for key, value in data.items() if key not in ("halves", "without_gold")}
    found = {"command": own_command(), "note": given.note, "model": given.llm, "data": counted, "k": K, **tables}
    write_json(
        given.out / f"six{given.label}.json", {**found, "versions": versions("torch", "transformers", "tantivy")}
    )


def has_all(measured: Measured, question: Question) -> bool:
    """Whether all four answers are there, also where one was not asked for once more."""
    records = [measured.records.get((question_key(question), name), {"error": "is missing"}) for name in STRATEGIES]
    return all(record.get("error") is None for record in records)


def logs_of(name: str, work: Path) -> list[Path]:
    """The logs of a profile: of one run, or of its shards."""
    return [*work.glob(f"{name}.parquet.log"), *sorted(work.glob(f"{name}.*-of-*.parquet.log"))]


def joined(logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shards as one log; they must have been made from the same."""
    headers = [log["header"] for log in logs]
    if any(one != headers[0] for one in headers):
        raise SystemExit(f"collect: shards of different models, corpora or prompts: {headers}")
    return {"header": headers[0], "records": [record for log in logs for record in log["records"]]}


def read_log(path: Path) -> dict[str, Any]:
    """Header and records, whatever they were made from."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]  # a last line without its end was being written
    lines = [json.loads(line[9:]) for line in whole.split("\n")]
    return {"header": lines[0], "records": lines[1:]}


def read_report(path: Path) -> Any:
    """What `run` said at its end, without the machine's folders; nothing of a run that was cut."""
    if not path.is_file():
        return None
    found = read_json(path)
    return found | {name: Path(found[name]).name for name in ("out", "log") if isinstance(found.get(name), str)}


def without_texts(row: Outcome) -> Outcome:
    """The same outcome without the question, gold answers, answer and completion."""
    return replace(row, question="", answers=(), answer="", completion=None, again=None)


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
            "asked_again": sum(row.again is not None for row in mine) / n,
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
    parser.add_argument("--shard", default="1/1", help="this run's part of the questions, as 1/3")
    parser.add_argument("--half", choices=("learn", "judge"), help="only the questions of a half")
    parser.add_argument("--corpora", default=",".join(CORPORA))
    parser.add_argument("--from", dest="begin", type=Path, nargs="+", help="logs of other runs whose answers are taken")
    parser.add_argument("--keep-times", action="store_true", help="take the times of --from too")
    parser.add_argument("--reask", action="store_true", help="ask anew what was asked again in --from")
    parser.add_argument("--label", default="", help="part of the files' names, to tell models apart")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    run(given) if given.step == "run" else collect(given)


if __name__ == "__main__":
    main()
