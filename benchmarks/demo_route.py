"""Records the demonstration model's profiles, and judges a router learned on one split by another.

    python benchmarks/demo_route.py profile --split validation --questions 600 --out FILE.parquet [--model DIR]
    python benchmarks/demo_route.py join FILE.parquet FILE.parquet --out src/apportion/demo/profile.parquet
    python benchmarks/demo_route.py judge --profile FILE.parquet --out FILE.json [--plot FILE.png]

The router learns on the validation split, which the model was not trained on, and is judged on the test split.
Answers are asked for one at a time, so that a latency is a single request's; interrupted runs go on with --resume.
"""

import argparse
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from apportion.core.artifact import Json, plain, sha256_file, versions, write_json
from apportion.core.errors import InputError
from apportion.core.seeds import derived_seed
from apportion.demo import DEFAULT_SEED, TRAFFIC, model_path, prompts_path, thinned, world, write_corpus
from apportion.demo.recorded import profile_path
from apportion.route.contestants import EvaluationPlan
from apportion.route.corpus import read_corpus
from apportion.route.evaluate import evaluate
from apportion.route.evaluation_report import report
from apportion.route.frontier_plot import draw_frontier
from apportion.route.indexing import build_index
from apportion.route.llm.connect import LLMSettings, connect
from apportion.route.profile import Profile
from apportion.route.profile_file import KEY, read_profile
from apportion.route.profiling import run_profile
from apportion.route.prompts import load_prompts
from apportion.route.questions import Question
from apportion.route.setup import Setup


def questions_of(split: str, count: int) -> list[Question]:
    """So many questions, evenly spread over the split and then shuffled, so that any first part is a fair one."""
    found = list(thinned(world().questions(split), count))
    Random(derived_seed(DEFAULT_SEED, "demo", "profile", split)).shuffle(found)
    return [Question(one.id, one.dataset, one.question, one.answers) for one in found]


def record(given: argparse.Namespace) -> None:
    """Ask every question in four ways, one request at a time, and write the profile."""
    asked = questions_of(given.split, given.spread or given.questions)[: given.questions]
    with TemporaryDirectory() as folder:
        corpus, index = Path(folder) / "corpus.jsonl", Path(folder) / "index"
        write_corpus(corpus)
        retriever = build_index(read_corpus(corpus), index)
        settings = LLMSettings(str(given.model), batch_size=given.batch, device="cpu", dtype="float32")
        with closing(connect(settings)) as llm:
            setup = Setup(llm, retriever, load_prompts(prompts_path()))
            report = run_profile(asked, setup, given.out, resume=given.resume)
    print(plain(report), file=sys.stderr)


def join(given: argparse.Namespace) -> None:
    """Put profiles of one model, corpus, prompts and k into one small file."""
    import pyarrow as pa
    from pyarrow import parquet

    tables = [parquet.read_table(path) for path in given.files]
    sources = [json.loads(table.schema.metadata[KEY]) for table in tables]
    for key in ("model", "corpus", "prompts", "k", "features"):
        if len({json.dumps(source[key]) for source in sources}) > 1:
            raise InputError(
                f"join: {key} differs: {[source[key] for source in sources]}", "join what belongs together"
            )
    meta = {KEY: json.dumps(sources[0]).encode()}
    joined = pa.concat_tables([table.replace_schema_metadata(meta) for table in tables])
    parquet.write_table(joined, given.out, compression="zstd", compression_level=19)
    print(f"{given.out}: {joined.num_rows} rows, {given.out.stat().st_size:,} bytes", file=sys.stderr)


def judge(given: argparse.Namespace) -> None:
    """Train on the validation rows, judge on the test rows, and save every figure."""
    begun = time.monotonic()
    profile = read_profile(given.profile)
    seen, test = (
        profile.select(np.array([name.startswith(f"{split}/") for name in profile.ids]))
        for split in ("validation", "test")
    )
    if given.traffic:
        test = as_traffic(test)
    plan = EvaluationPlan(ablations=not given.brief, leave_out=not given.brief)
    evaluation = evaluate(test, plan, train=seen)
    print(report(evaluation).split("## Strategies in detail")[0])
    rehearsed = evaluate(seen, EvaluationPlan(ablations=False, leave_out=False)) if not given.traffic else None
    saved: dict[str, Any] = plain(evaluation)
    chosen = chosen_before(plain(rehearsed), saved) if rehearsed else None
    found = {
        "command": "python " + " ".join(sys.argv),
        "versions": versions("torch", "transformers", "numpy", "tantivy"),
        "profile_sha256": sha256_file(given.profile),
        "mixture": dict(TRAFFIC) if given.traffic else "that of the split",
        "training_questions": seen.n,
        "seconds": round(time.monotonic() - begun, 1),
        "latency": "one request at a time on a shared 2-core machine; all four pipelines of a question in a row",
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
    profile.add_argument("--split", required=True)
    profile.add_argument("--questions", type=int, required=True)
    profile.add_argument("--spread", type=int, help="take the first --questions of a spread of so many")
    profile.add_argument("--model", type=Path, default=model_path())
    profile.add_argument("--out", type=Path, required=True)
    profile.add_argument("--batch", type=int, default=1, help="above 1 a latency is that of a batch")
    profile.add_argument("--resume", action="store_true")
    profile.set_defaults(run=record)
    joining = steps.add_parser("join")
    joining.add_argument("files", type=Path, nargs="+")
    joining.add_argument("--out", type=Path, required=True)
    joining.set_defaults(run=join)
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
