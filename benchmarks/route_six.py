"""The router on six question-answering sets: learned on one half of the questions, judged once on the other.

    python benchmarks/route_six.py --learn docs/results/six_learn.parquet --judge docs/results/six_judge.parquet \
        --out docs/results/route_six.json [--claimed SET,SET] [--plot FILE.png]

Nothing is chosen on the judged half: one training with the program's defaults and two decisions, 21 pairs of weights
(7 where no latency was recorded). The weights of the savings are chosen by folds of the learning half. Also: the worth
of each feature (its column dealt out anew among the judged questions, so that it tells nothing), and sets left out.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from command_line import own_command  # beside this script

from apportion.core.artifact import Json, plain, sha256_file, versions, write_json
from apportion.core.bootstrap import Bootstrap
from apportion.core.seeds import stream
from apportion.route.ask.features import WORD_PREFIX
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation import Evaluation, EvaluationPlan, draw_frontier, evaluate_router, report
from apportion.route.evaluation.contest import Always, Routed, play
from apportion.route.profile.file import read_profile
from apportion.route.profile.profile import Profile
from apportion.route.router import Router, Weights, train_router
from apportion.route.router.utility import weight_grid

PLAN = EvaluationPlan(stages=2)


def only(profile: Profile, sets: tuple[str, ...]) -> Profile:
    """The questions of some sets; all where none is named."""
    return profile.select(np.isin(profile.dataset, sets)) if sets else profile


def by_set(profile: Profile) -> list[Json]:
    """Quality, tokens and latency of each pipeline in each set."""
    names, rows = np.array(profile.dataset), []
    for name in ("all", *np.unique(names).tolist()):
        part = profile if name == "all" else profile.select(names == name)
        cells = {
            strategy: {
                "quality": float(part.quality[:, column].mean()),
                "tokens": float(part.tokens[:, column].mean()),
                "latency_ms": float(part.latency_ms[:, column].mean()) if part.has_latency else None,
            }
            for column, strategy in enumerate(STRATEGIES)
        }
        best = float(part.quality.max(axis=1).mean())
        rows.append({"set": name, "questions": part.n, "pipelines": cells, "best_of_four": best})
    return rows


def chosen_savings(learned: Evaluation | None, router: Router, judged: Profile) -> Json:
    """Against always RAG+CoT at the weights that, by folds of the learning half, save most at no lower quality."""
    if learned is None:
        return {"weights": None, "reason": "no folds were run (--brief)"}
    both = next((one for one in learned.savings if (one.family, one.what) == ("all", "both")), None)
    tokens = next(one for one in learned.savings if (one.family, one.what) == ("all", "tokens"))
    found = both if both and both.saved is not None else tokens
    if found.saved is None or found.token_weight is None or found.latency_weight is None:
        return {"weights": None, "reason": "no weights kept the quality on folds of the learning half"}
    weights = Weights(found.token_weight, found.latency_weight)
    routed = play(judged, Routed(router).choose(judged, weights))
    always = play(judged, Always(STRATEGIES.index("rag+cot")).choose(judged, weights))
    change = Bootstrap(judged.n, 0).interval(routed.quality - always.quality)
    return {
        "weights": [weights.token, weights.latency],
        "quality": float(routed.quality.mean()),
        "quality_change": plain(change),
        "tokens_saved": 1 - float(routed.tokens.mean() / always.tokens.mean()),
        "latency_saved": 1 - float(routed.latency_ms.mean() / always.latency_ms.mean()) if judged.has_latency else None,
    }


def worth_of_features(router: Router, judged: Profile, grid: list[Weights]) -> list[Json]:
    """What the router loses when one feature tells nothing: mean utility over the weights, most first."""
    whole = values(router, judged, grid)
    bootstrap, rows = Bootstrap(judged.n, 0), []
    read = {name for tier in router.tiers for name in tier.names} | set(
        router.second.reader.names if router.second else ()
    )
    groups = {name: (name,) for name in sorted(read) if not name.startswith(WORD_PREFIX)}
    groups["all hashed words"] = tuple(sorted(name for name in read if name.startswith(WORD_PREFIX)))
    groups["all NQC"] = tuple(sorted(name for name in read if name.startswith("nqc_")))
    groups["all of the draft"] = tuple(sorted(name for name in read if name.startswith("draft_")))
    groups["all of the retrieved answer"] = tuple(sorted(name for name in read if name.startswith("rag_")))
    for label, names in groups.items():
        if names:
            lost = whole - values(router, dealt(judged, names), grid)
            rows.append({"feature": label, "worth": plain(bootstrap.interval(lost))})
    return sorted(rows, key=lambda row: -row["worth"]["mean"])


def dealt(profile: Profile, names: tuple[str, ...]) -> Profile:
    """Some features dealt out anew among the questions, together."""
    order = stream(0, "worth", *names).permutation(profile.n)
    columns = [profile.feature_names.index(name) for name in names if name in profile.feature_names]
    features = profile.features.copy()
    features[:, columns] = features[order][:, columns]
    return replace(profile, features=features)


def values(router: Router, profile: Profile, grid: list[Weights]) -> np.ndarray:
    """[n] mean utility over the weights."""
    routed = Routed(router)
    return np.mean([play(profile, routed.choose(profile, w)).utility(w, router.scale) for w in grid], axis=0)


def measure(given: argparse.Namespace) -> Json:
    """Everything, as saved."""
    claimed = tuple(given.claimed.split(",")) if given.claimed else ()
    learn, judge = (only(read_profile(path), claimed).only_complete() for path in (given.learn, given.judge))
    start = time.monotonic()
    trained = train_router(learn, stages=2)
    seconds = time.monotonic() - start
    router = trained.router
    plan = replace(PLAN, ablations=not given.brief, leave_out=not given.brief)
    evaluation = evaluate_router(judge, plan, train=learn, router=router)
    print(report(evaluation).split("## Strategies in detail")[0], flush=True)
    rehearsed = None if given.brief else evaluate_router(learn, replace(plan, ablations=False, leave_out=False))
    grid = weight_grid(plan.token_weights, plan.latency_weights, timed=router.has_latency)
    saved: dict[str, Any] = plain(evaluation)
    saved["plot"] = saved.pop("frontier")
    return {
        "title": "The router on six question-answering sets",
        "training_questions": learn.n,
        "training_seconds": round(seconds),
        "second": plain(trained.second),
        "by_set": by_set(judge),
        "savings_chosen_on_folds": chosen_savings(rehearsed, router, judge),
        "folds_of_the_learning_half": plain(rehearsed.summary) if rehearsed else None,
        "worth": worth_of_features(router, judge, grid),
        **saved,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--claimed", default="", help="Sets, with commas; all without it.")
    parser.add_argument("--brief", action="store_true", help="No ablations, no set left out, no folds.")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    found = measure(given)
    if given.plot:
        draw_frontier({**found, "frontier": found["plot"]}, given.plot)
    found.pop("plot")
    digests = {name: sha256_file(getattr(given, name)) for name in ("learn", "judge")}
    write_json(
        given.out, {"command": own_command(), "sha256": digests, "versions": versions("torch", "numpy"), **found}
    )


if __name__ == "__main__":
    main()
