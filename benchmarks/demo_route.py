"""Records the demonstration model's profiles, and judges a router learned on one split by another.

    python benchmarks/demo_route.py profile --split train:1500 --split test:700 --share 0/13 --out FOLDER
    python benchmarks/demo_route.py gather FOLDER --split train:1500 --split test:700 --out FILE.parquet
    python benchmarks/demo_route.py judge --profile FILE.parquet --out FILE.json [--plot FILE.png]

The router learns on the train split, which the model was not trained on, and is judged on the test split. Answers
are asked for one at a time, so that a latency is a single request's. Questions of all splits come mixed, and every
answer is logged at once: a run that is stopped has a fair sample of each split, and goes on where it was.
"""

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from command_line import own_command

from apportion.core.artifact import Json, plain, sha256_file, versions, write_json
from apportion.core.errors import InputError
from apportion.core.log import read_log
from apportion.core.seeds import derived_seed
from apportion.demo import DEFAULT_SEED, TRAFFIC, model_path, prompts_path, thinned, world, write_corpus
from apportion.demo.recorded import profile_path
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.ask.source import ProfileSource
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.evaluate import evaluate_router
from apportion.route.evaluation.field import EvaluationPlan
from apportion.route.evaluation.plot import draw_frontier
from apportion.route.evaluation.report import report
from apportion.route.index.build import build_index
from apportion.route.index.corpus import read_corpus
from apportion.route.llm.connect import LLMSettings, connect
from apportion.route.profile.file import read_profile, write_profile
from apportion.route.profile.profile import Profile
from apportion.route.profile.questions import Question
from apportion.route.profile.records import Measured
from apportion.route.profile.run import run_profile

LATENCY = (
    "one request at a time in each of 14 single-threaded processes side by side, on 32 CPU cores (no GPU) of which at "
    "most about 6 more were in use; all four pipelines of a question in a row"
)


def questions_of(splits: list[str]) -> list[Question]:
    """Questions of `split:count` each, evenly spread over a split and then all shuffled: any part is a fair one."""
    wanted = [(name, int(count)) for name, _, count in (split.partition(":") for split in splits)]
    found = [one for name, count in wanted for one in thinned(world().questions(name), count)]
    Random(derived_seed(DEFAULT_SEED, "demo", "profile", *splits)).shuffle(found)
    return [Question(one.id, one.dataset, one.question, one.answers) for one in found]


def record(given: argparse.Namespace) -> None:
    """Ask the questions of one share in four ways, one request at a time."""
    own, shares = map(int, given.share.split("/"))
    asked = questions_of(given.split)[own::shares]
    with TemporaryDirectory() as folder:
        corpus, index = Path(folder) / "corpus.jsonl", Path(folder) / "index"
        write_corpus(corpus)
        retriever = build_index(read_corpus(corpus), index)
        settings = LLMSettings(str(given.model), batch_size=given.batch, device="cpu", dtype="float32")
        with closing(connect(settings)) as llm:
            setup = Setup(llm, retriever, load_prompts(prompts_path()))
            report = run_profile(asked, setup, given.out / f"{own:02d}.parquet", resume=True)
    print(plain(report), file=sys.stderr)


def gather(given: argparse.Namespace) -> None:
    """The questions that the shares have finished, from their logs into one profile."""
    measured, sources = Measured(), list[Json]()
    for path in sorted(given.folder.glob("*.log")):
        header, records, _ = read_log(path)
        sources.append(header)
        for line in records:
            measured.add(line)
    if not sources or any(source != sources[0] for source in sources):
        raise InputError(f"{given.folder}: {len(sources)} logs, expected at least one, and all of one setup")
    asked = questions_of(given.split)
    done = [one for one in asked if measured.count([one], STRATEGIES) == len(STRATEGIES)]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [row for one in sorted(done, key=lambda one: one.id) for row in measured.outcomes(one)]
    write_profile(given.out, rows, ProfileSource(**sources[0], created=created))
    from pyarrow import parquet  # which a machine that only records need not have

    table = parquet.read_table(given.out)
    parquet.write_table(table, given.out, compression="zstd", compression_level=19)
    counts = Counter(one.id.split("/")[0] for one in done)
    print(f"{given.out}: {dict(counts)} of {len(asked)}, {given.out.stat().st_size:,} bytes", file=sys.stderr)


def judge(given: argparse.Namespace) -> None:
    """Train on the rows of the train split, judge on the test rows, and save every figure."""
    begun = time.monotonic()
    profile = read_profile(given.profile)
    seen, test = (
        profile.select(np.array([name.startswith(f"{split}/") for name in profile.ids])) for split in ("train", "test")
    )
    if given.traffic:
        test = as_traffic(test)
    plan = EvaluationPlan(ablations=not given.brief, leave_out=not given.brief)
    evaluation = evaluate_router(test, plan, train=seen)
    print(report(evaluation).split("## Strategies in detail")[0])
    rehearsed = evaluate_router(seen, EvaluationPlan(ablations=False, leave_out=False)) if not given.traffic else None
    saved: dict[str, Any] = plain(evaluation)
    chosen = chosen_before(plain(rehearsed), saved) if rehearsed else None
    found = {
        "command": own_command(),
        "versions": versions("torch", "transformers", "numpy", "tantivy"),
        "profile_sha256": sha256_file(given.profile),
        "mixture": dict(TRAFFIC) if given.traffic else "that of the split",
        "training_questions": seen.n,
        "seconds": round(time.monotonic() - begun, 1),
        "latency": LATENCY,
        "at_no_lower_quality": no_lower(saved),
        "weights_chosen_on_training_questions": chosen,
        **saved,
    }
    write_json(given.out, found)
    if given.plot:
        draw_frontier(found, given.plot)
    print(json.dumps({"best": best_of(found["at_no_lower_quality"]), "chosen before": chosen}, indent=1))


def as_traffic(profile: Profile) -> Profile:
    """The first questions of each family, in the shares of `TRAFFIC`: mostly easy ones, as a service is asked."""
    own = {name: [row for row, family in enumerate(profile.dataset) if family == name] for name in TRAFFIC}
    unit = min(len(rows) // TRAFFIC[name] for name, rows in own.items())
    return profile.select(np.array([row for name, rows in own.items() for row in rows[: unit * TRAFFIC[name]]]))


def points(saved: Json) -> list[Json]:
    """The router at every pair of weights, against always RAG+CoT: tokens and latency saved, change in quality."""
    reference = saved["frontier"]["rag+cot"][0]
    rows = [{**at["router"], **at} for at in saved["weights"]] + saved["frontier"]["router"]
    return [
        {
            "token_weight": row["token_weight"],
            "latency_weight": row["latency_weight"],
            "quality_change": row["quality"] - reference["quality"],
            "tokens_saved": 1 - row["tokens"] / reference["tokens"],
            "latency_saved": 1 - row["latency_ms"] / reference["latency_ms"],
        }
        for row in rows
    ]


def no_lower(saved: Json) -> list[Json]:
    """Those of them whose mean quality on these very questions is no lower."""
    return [point for point in points(saved) if point["quality_change"] >= -1e-12]


def best_of(found: list[Json]) -> Json | None:
    """The point whose smaller saving is largest."""
    return max(found, key=lambda point: min(point["tokens_saved"], point["latency_saved"]), default=None)


def chosen_before(rehearsed: Json, saved: Json) -> Json | None:
    """The best weights by folds of the training questions, and what they gave on the test questions."""
    best = best_of(no_lower(rehearsed))
    if best is None:
        return None
    pair = (best["token_weight"], best["latency_weight"])
    on_test = next(p for p in points(saved) if (p["token_weight"], p["latency_weight"]) == pair)
    return {"in_training": best, "on_test": on_test}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    profile = steps.add_parser("profile")
    profile.add_argument("--split", action="append", required=True, help="NAME:QUESTIONS, of any number of splits")
    profile.add_argument("--share", default="0/1", help="I/N: every Nth question from the Ith, in a process of its own")
    profile.add_argument("--batch", type=int, default=1, help="above 1 a latency is that of a batch")
    profile.add_argument("--model", type=Path, default=model_path())
    profile.add_argument("--out", type=Path, required=True, help="folder of the shares' logs")
    profile.set_defaults(run=record)
    gathering = steps.add_parser("gather")
    gathering.add_argument("folder", type=Path, help="with the logs of all shares")
    gathering.add_argument("--split", action="append", required=True, help="as the shares were recorded")
    gathering.add_argument("--out", type=Path, required=True)
    gathering.set_defaults(run=gather)
    judging = steps.add_parser("judge")
    judging.add_argument("--profile", type=Path, default=profile_path())
    judging.add_argument("--out", type=Path, required=True)
    judging.add_argument("--plot", type=Path)
    judging.add_argument("--brief", action="store_true", help="no ablations, no family left out")
    judging.add_argument("--traffic", action="store_true", help="judge in the mixture of demo.TRAFFIC")
    judging.set_defaults(run=judge)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
