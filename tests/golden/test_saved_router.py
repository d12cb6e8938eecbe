"""A router saved by an earlier version decides as it did then.

To make it again after a deliberate change of the format: `python tests/golden/test_saved_router.py`.
"""

import json
import sys
from pathlib import Path

import pytest

from apportion.route.profile.profile import Profile
from apportion.route.router.file import load_router, save_router
from apportion.route.router.router import Router

FOLDER = Path(__file__).parent / "router"
EXPECTED = Path(__file__).parent / "router_decisions.json"
WEIGHTS = ((0.0, 0.0), (0.1, 0.0), (0.5, 0.2), (3.0, 1.0))


def questions() -> Profile:
    from tests.synthetic_profiles import needs_profile

    return needs_profile(6, seed=77)


def decisions(router: Router) -> list[dict[str, object]]:
    """What the router decides for six questions at four weights."""
    profile, found = questions(), []
    for i in range(profile.n):
        features = dict(zip(profile.feature_names, profile.features[i].tolist(), strict=True))
        for token, latency in WEIGHTS:
            one = router.decide(features, token, latency)
            found.append({"strategy": one.strategy, "tier": one.tier, "p_rag": one.p_rag, "p_cot": one.p_cot})
    return found


def test_decisions_are_those_of_then() -> None:
    expected = json.loads(EXPECTED.read_text())
    found = decisions(load_router(FOLDER))
    assert len({one["strategy"] for one in expected}) >= 3  # a golden file that always says the same is none
    for now, then in zip(found, expected, strict=True):
        assert (now["strategy"], now["tier"]) == (then["strategy"], then["tier"])
        for head in ("p_rag", "p_cot"):
            assert now[head] == pytest.approx(then[head], abs=1e-4)


def make() -> None:
    """Train a small router and save what it decides."""
    from apportion.route.router.plan import TrainingPlan
    from apportion.route.router.train import train_router
    from tests.synthetic_profiles import needs_profile

    plan = TrainingPlan(hidden=6, folds=2, seeds=1, steps=200, check_every=50)
    router = train_router(needs_profile(300, seed=1), plan).router
    save_router(FOLDER, router, {"made_by": "tests/golden/test_saved_router.py"})
    EXPECTED.write_text(json.dumps(decisions(router), indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    make()
