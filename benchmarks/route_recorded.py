"""The router on recorded outcomes of real LLMs, K-fold: its utility against the best static pipeline's.

    python benchmarks/route_recorded.py --profiles DIR --corpus hotpotqa.jsonl --out FILE.json [--stages 2] [--brief]
        [--before FILE.json]

--before keeps the gains of an earlier result beside the new ones. --brief trains no ablations.

Hyper-parameters were chosen on synthetic profiles, but for these: the pooling of the gate's evidence over neighbouring
weights, its caution of one standard error and the forests were chosen on folds of the learning half of the six sets
with an eye on folds of these profiles, so the results here are not wholly untouched by that choice (see LOG.md).
Whatever comes out is saved.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_line import own_command

from apportion.core.artifact import plain, read_json, sha256_file, versions, write_json
from apportion.route.evaluation.evaluate import evaluate_router
from apportion.route.evaluation.field import EvaluationPlan
from apportion.route.evaluation.report import report
from apportion.route.index.build import build_index
from apportion.route.index.corpus import read_corpus
from apportion.route.profile.add_probes import add_probes
from apportion.route.profile.file import read_profile

RECORDED = ("llama31_8b_hotpotqa", "llama31_8b_six_cot_ragcot", "gpt3_direct_cot")
WITH_CORPUS = "llama31_8b_hotpotqa"


def measure(path: Path, index: Path | None, plan: EvaluationPlan) -> dict[str, Any]:
    """One recorded profile, compared on folds."""
    start = time.monotonic()
    profile = add_probes(read_profile(path), index)
    evaluation = evaluate_router(profile, plan)
    print(report(evaluation).split("## Strategies in detail")[0])
    saved: dict[str, Any] = plain(evaluation)
    saved.pop("frontier")
    return {"profile_sha256": sha256_file(path), "seconds": round(time.monotonic() - start), **saved}


def earlier(path: Path) -> dict[str, Any]:
    """Gains by weights of an earlier result, and the command that made it."""
    saved = read_json(path)
    gains = {
        name: [[at["token_weight"], at["latency_weight"], at["gain"]["interval"]] for at in saved[name]["weights"]]
        for name in RECORDED
    }
    return {"command": saved["command"], "gains": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--before", type=Path)
    given = parser.parse_args()
    plan = EvaluationPlan(folds=given.folds, stages=given.stages, ablations=not given.brief, leave_out=not given.brief)
    before = earlier(given.before) if given.before else {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        build_index(read_corpus(given.corpus), index)
        for name in RECORDED:
            recorded = name == WITH_CORPUS
            # the other two have no corpus here, so only the question's own features; ablations need probes
            chosen = plan if recorded else replace(plan, ablations=False)
            found[name] = measure(given.profiles / f"{name}.parquet", index if recorded else None, chosen)
    made = {"command": own_command(), "versions": versions("torch", "numpy", "tantivy"), "before": before}
    write_json(given.out, {**made, **found})


if __name__ == "__main__":
    main()
