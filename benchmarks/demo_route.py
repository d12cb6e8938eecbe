"""Records the demonstration model's profiles, and judges a router learned on one split by another.

    python benchmarks/demo_route.py profile --split validation --questions 600 --out FILE.parquet [--model DIR]
    python benchmarks/demo_route.py judge --train FILE --test FILE --out FILE.json [--plot FILE.png]

The router learns on the validation split, which the model was not trained on, and is judged on the test split.
Answers are asked for one at a time, so that a latency is a single request's; interrupted runs go on with --resume.
"""

import argparse
import sys
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from apportion.core.artifact import plain
from apportion.core.seeds import derived_seed
from apportion.demo import DEFAULT_SEED, model_path, prompts_path, thinned, world, write_corpus
from apportion.route.corpus import read_corpus
from apportion.route.indexing import build_index
from apportion.route.llm.connect import LLMSettings, connect
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
        settings = LLMSettings(str(given.model), batch_size=1, device="cpu", dtype="float32")
        with closing(connect(settings)) as llm:
            setup = Setup(llm, retriever, load_prompts(prompts_path()))
            report = run_profile(asked, setup, given.out, resume=given.resume)
    print(plain(report), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    profile = steps.add_parser("profile")
    profile.add_argument("--split", required=True)
    profile.add_argument("--questions", type=int, required=True)
    profile.add_argument("--spread", type=int, help="take the first --questions of a spread of so many")
    profile.add_argument("--model", type=Path, default=model_path())
    profile.add_argument("--out", type=Path, required=True)
    profile.add_argument("--resume", action="store_true")
    profile.set_defaults(run=record)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
