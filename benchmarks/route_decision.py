"""How long one routing decision takes: median and 99th percentile of `Router.decide`, one thread.

    python benchmarks/route_decision.py [--router DIR] [--out FILE]

Without --router, one is trained on synthetic questions with sixteen features.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from command_line import own_command  # noqa: E402

from apportion.route.ask.features import FEATURES, group_of  # noqa: E402
from apportion.route.router import Router, load_router, train_router  # noqa: E402
from apportion.route.router.policy import Policy  # noqa: E402
from tests.synthetic_profiles import needs_profile  # noqa: E402
from tests.trained_routers import preferring  # noqa: E402


def wide_router() -> Router:
    """A router that reads sixteen features, none of them useless by construction."""
    profile = needs_profile(400, seed=1)
    more = tuple(name for name in FEATURES if name not in profile.feature_names and group_of(name) == "retrieval")[:11]
    noise = np.random.default_rng(0).normal(size=(profile.n, len(more)))
    return train_router(profile.with_features(more, noise)).router


def measure(router: Router, name: str, decisions: int) -> dict[str, Any]:
    """Times of decisions in microseconds, where this tier comes first; `decided_by` counts the tiers that decided."""
    tier = next(tier for tier in router.tiers if tier.name == name)
    names = router.tiers[0].names
    draws = np.random.default_rng(1).normal(size=(decisions, len(names)))
    asked = [dict(zip(names, row.tolist(), strict=True)) for row in draws]
    times, decided = [], Counter[str]()
    for features in asked:
        start = time.perf_counter()
        decision = router.decide(features, 0.3, 0.1 if router.has_latency else 0.0)
        times.append((time.perf_counter() - start) * 1e6)
        decided[decision.tier] += 1
    size = tier.decider.layers.w1.shape if isinstance(tier.decider, Policy) else (0, 0, 0)
    return {
        "decider": tier.decider.kind,
        "decided_by": dict(decided),
        "median_us": float(np.median(times)),
        "p99_us": float(np.quantile(times, 0.99)),
        "decisions": decisions,
        "features": len(tier.names),
        "members": size[0],
        "hidden": size[2],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    router = load_router(given.router) if given.router else wide_router()
    found = {
        tier.name: measure(preferring(router, tier.name), tier.name, 5000) for tier in router.tiers if not tier.looks
    }
    text = json.dumps({"command": own_command(), "by_tier": found}, indent=1)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")
    print(text)
