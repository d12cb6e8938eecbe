"""What three bits change: the shipped model and its quantized self on the same questions, each with its own router.

    apportion quantize src/apportion/demo/model --avg-bits 3 --evaluations 100 --windows 16 --window-tokens 256 \\
        --apply-rounding gptq --rounding-windows 48 --finalists 2 \\
        --calibration calibration.txt --out q3                            (calibration.txt: demo.calibration_text())
    python benchmarks/demo_route.py profile --split train:N --split test:M --batch 16 --model q3 --out FOLDER
    python benchmarks/demo_route.py gather FOLDER --split train:N --split test:M --out q3.parquet
    (both once more with the shipped model, on the same machine: full.parquet)
    python benchmarks/demo_route_3bit.py --model q3 --profile q3.parquet --full-profile full.parquet --out FILE.json
    python benchmarks/demo_route_3bit.py --model q3 --latency-alone --out FILE.json     (of a file that is there)

Quality and tokens come from profiles whose answers were decoded 16 at once, so routers here decide by tokens alone.
Latency is measured apart, one request at a time, the two models taking turns question by question. Without
`--full-profile` the full model's answers are those of the shipped profile, made on another machine.
"""

import argparse
import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from command_line import own_command
from demo_route import questions_of

from apportion.core.arrays import NDArray
from apportion.core.artifact import Json, plain, read_json, versions, write_json
from apportion.core.bootstrap import Bootstrap
from apportion.demo import model_path, prompts_path, write_corpus
from apportion.demo.recorded import recorded
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.evaluate import evaluate_router
from apportion.route.evaluation.field import EvaluationPlan
from apportion.route.index.build import build_index
from apportion.route.index.corpus import read_corpus
from apportion.route.llm.connect import LLMSettings, connect
from apportion.route.profile.file import read_profile
from apportion.route.profile.profile import Profile
from apportion.route.profile.run import ask


def untimed(profile: Profile) -> Profile:
    """The same without latencies, which are those of batches."""
    return replace(profile, latency_ms=np.full_like(profile.latency_ms, np.nan))


def split_of(profile: Profile | None, split: str) -> Profile:
    """The questions of a split; without a profile, those of the shipped one."""
    if profile is None:
        return untimed(recorded(split))
    return profile.select(np.array([name.startswith(f"{split}/") for name in profile.ids]))


def shared(first: Profile, second: Profile) -> tuple[Profile, Profile]:
    """The questions that both recorded, in one order."""
    places = {name: row for row, name in enumerate(second.ids)}
    common = [row for row, name in enumerate(first.ids) if name in places]
    other = [places[first.ids[row]] for row in common]
    return first.select(np.array(common)), second.select(np.array(other))


def changed(before: NDArray[np.float64], after: NDArray[np.float64]) -> Json:
    """Means and the paired change with its 95 % interval."""
    interval = Bootstrap(len(before), 0).interval(after - before)
    return {"full": float(before.mean()), "three_bit": float(after.mean()), "change": plain(interval)}


def pipelines(full: Profile, low: Profile) -> dict[str, Json]:
    """Change in quality and tokens of every static pipeline."""
    return {
        name: {
            "f1": changed(full.quality[:, column], low.quality[:, column]),
            "em": changed(full.em[:, column], low.em[:, column]),
            "tokens": changed(full.tokens[:, column], low.tokens[:, column]),
        }
        for column, name in enumerate(STRATEGIES)
    }


def routed(seen: Profile, test: Profile) -> Json:
    """A router fitted on these questions, at every token weight."""
    plan = EvaluationPlan(latency_weights=(0.0,), ablations=False, leave_out=False)
    saved = plain(evaluate_router(test, plan, train=seen))
    kept = ("token_weight", "router", "best_static", "best_static_names", "oracle", "gain", "gap_closed")
    return {
        "training_questions": seen.n,
        "summary": saved["summary"],
        "weights": [{key: at[key] for key in kept} for at in saved["weights"]],
        "savings": saved["savings"],
    }


def latencies(model: Path, count: int) -> Json:
    """Mean milliseconds of each pipeline, one request at a time, the models taking turns; test questions."""
    with TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(corpus)
        retriever = build_index(read_corpus(corpus), Path(folder) / "index")
        prompts = load_prompts(prompts_path())
        found: dict[tuple[str, str], list[float]] = {}
        settings = [
            LLMSettings(str(path), batch_size=1, device="cpu", dtype="float32") for path in (model_path(), model)
        ]
        with closing(connect(settings[0])) as full, closing(connect(settings[1])) as low:
            for question in questions_of(["test:900"])[:count]:
                for strategy in STRATEGIES:
                    for name, llm in (("full", full), ("three_bit", low)):
                        record = ask([(question, strategy)], Setup(llm, retriever, prompts))[0]
                        found.setdefault((name, strategy), []).append(record["latency_ms"])
    return {
        strategy: changed(np.array(found["full", strategy]), np.array(found["three_bit", strategy]))
        for strategy in STRATEGIES
    }


def timed_again(given: argparse.Namespace) -> Json:
    """A saved result with latencies measured anew, by their own command and versions; all else as it was."""
    return read_json(given.out) | {
        "latency_questions": given.latency_questions,
        "latency_ms": latencies(given.model, given.latency_questions),
        "latency": {
            "command": own_command(),
            "versions": versions("torch", "transformers", "numpy"),
        },
    }


def without_folder(result: Json) -> Json:
    """A result of `quantize` without where on its machine the checkpoint was written."""
    return {**result, "out": Path(result["out"]).name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--profile", type=Path, help="of the quantized model, both splits")
    parser.add_argument("--full-profile", type=Path, help="of the shipped model, recorded in the same way")
    parser.add_argument("--latency-questions", type=int, default=24)
    parser.add_argument("--latency-alone", action="store_true", help="measure latency anew, in the file that is there")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if not given.latency_alone and not given.profile:
        parser.error("--profile is needed, or --latency-alone")
    found = timed_again(given) if given.latency_alone else whole(given)
    write_json(given.out, found)
    print(json.dumps({key: found[key] for key in ("pipelines", "latency_ms")}, indent=1))


def whole(given: argparse.Namespace) -> Json:
    """Both models compared on profiles and by latency."""
    begun = time.monotonic()
    low = untimed(read_profile(given.profile))
    full = untimed(read_profile(given.full_profile)) if given.full_profile else None
    seen_full, seen_low = shared(split_of(full, "train"), low)
    test_full, test_low = shared(split_of(full, "test"), low)
    return {
        "command": own_command(),
        "versions": versions("torch", "transformers", "numpy"),
        "quantized": without_folder(json.loads((given.model / "result.json").read_text())),
        "questions": "those that both models answered, of an even spread over each split in random order"
        + (" on the same machine" if full is not None else ""),
        "training_questions": seen_full.n,
        "test_questions": test_full.n,
        "pipelines": pipelines(test_full, test_low),
        "router_full": routed(seen_full, test_full),
        "router_three_bit": routed(seen_low, test_low),
        "latency_questions": given.latency_questions,
        "latency_ms": latencies(given.model, given.latency_questions),
        "seconds": round(time.monotonic() - begun, 1),
    }


if __name__ == "__main__":
    main()
