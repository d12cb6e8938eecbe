"""May a draft be streamed before it ends? Only where no way in which it may go on changes the router's decision.

For every test question of the demonstration that is drafted and answered by its draft: the first token of the draft is
held (its loss, and all that was measured before), the rest is exchanged for the rest of every other recorded
draft. If one of those changes the decision, no sound bound can release the draft at its first token; the share of the
questions that no other draft changes is therefore more than any bound can reach.

    PYTHONPATH=src:. python benchmarks/early_draft.py --router DIR --out docs/results/early_draft.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from command_line import own_command

from apportion.core.arrays import NDArray
from apportion.demo.recorded import recorded
from apportion.route.ask.features import is_draft
from apportion.route.ask.strategy import DIRECT
from apportion.route.profile.profile import Profile
from apportion.route.router.file import load_router
from apportion.route.router.router import FULL, Router
from apportion.route.router.utility import Weights

Floats = NDArray[np.float64]
WEIGHTS = ((0.05, 0.0), (0.1, 0.0), (0.1, 0.1), (0.2, 0.1), (0.5, 0.1))
FIRST = "draft_nll_first"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    router, asked, others = load_router(given.router), recorded("test"), recorded("train")
    rows = [row_of(router, asked, others, Weights(*weights)) for weights in WEIGHTS]
    for row in rows:
        print(json.dumps(row), flush=True)
    if given.out:
        title = "Drafts that are the answer, and how many of them are so whatever follows their first token"
        given.out.write_text(json.dumps({"title": title, "command": own_command(), "rows": rows}, indent=1) + "\n")


def row_of(router: Router, asked: Profile, others: Profile, weights: Weights) -> dict[str, Any]:
    """What is drafted at these weights, what of it is the answer, and what of that no other draft changes."""
    features = dict(zip(asked.feature_names, asked.features.T, strict=True))
    ends = np.array([_ends_direct(router, asked, asked.features[[row]], weights)[0] for row in range(asked.n)])
    drafted = np.array([_drafts(router, features, row, weights) for row in range(asked.n)])
    kept = np.flatnonzero(ends & drafted)
    changed = [1 - _ends_direct(router, asked, exchanged(asked, row, others), weights).mean() for row in kept]
    return {
        "token_weight": weights.token,
        "latency_weight": weights.latency,
        "questions": asked.n,
        "drafted": int(drafted.sum()),
        "draft_is_the_answer": len(kept),
        "whatever_follows": int(np.sum(np.array(changed) == 0)),
        "whatever_follows_in_99_of_100": int(np.sum(np.array(changed) < 0.01)),
    }


def exchanged(asked: Profile, row: int, others: Profile) -> Floats:
    """[n, f] one question's features, the rest of its draft exchanged for others'; mean and maximum stay true."""
    at = {name: number for number, name in enumerate(asked.feature_names)}
    known, drafts = asked.features[row], others.keep_features(asked.feature_names).features
    found = np.where([is_draft(name) and name != FIRST for name in asked.feature_names], drafts, known)
    first, theirs = known[at[FIRST]], drafts[:, at[FIRST]]
    tokens = drafts[:, at["draft_tokens"]]
    found[:, at["draft_nll_mean"]] = drafts[:, at["draft_nll_mean"]] + (first - theirs) / tokens
    later = np.where(drafts[:, at["draft_nll_max"]] > theirs, drafts[:, at["draft_nll_max"]], 0.0)
    found[:, at["draft_nll_max"]] = np.maximum(first, later)
    return np.asarray(found)


def _drafts(router: Router, features: dict[str, Floats], row: int, weights: Weights) -> bool:
    return router.wants_draft({name: float(values[row]) for name, values in features.items()}, weights)


def _ends_direct(router: Router, asked: Profile, features: Floats, weights: Weights) -> NDArray[np.bool_]:
    """[n] whether the tier that reads drafts answers by them."""
    decider = next(tier.decider for tier in router.tiers if tier.name == FULL)
    read = decider.reader.standardise(decider.reader.take(features, asked.feature_names))
    return np.asarray(decider.scores(read, weights).argmax(axis=1) == DIRECT)


if __name__ == "__main__":
    main()
