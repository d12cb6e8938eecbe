"""Routers trained once for all tests of a process, on profiles whose best routes are known."""

from dataclasses import replace
from functools import cache

from apportion.route.router import Router, Trained, TrainingPlan, train_router
from tests.synthetic_profiles import either_profile, needs_profile

QUICK = TrainingPlan(folds=4, seeds=1, steps=300, check_every=50, head_share=0.5)  # so few steps need the larger share


@cache
def informed() -> Trained:
    """Features reveal both needs."""
    return train_router(needs_profile(500, seed=1), QUICK)


@cache
def exclusive() -> Trained:
    """The best route is an exclusive or of two features."""
    return train_router(either_profile(500, seed=1), QUICK)


@cache
def uninformed() -> Trained:
    """Features are noise."""
    return train_router(needs_profile(300, seed=1, signal=0.0), QUICK)


def preferring(router: Router, name: str) -> Router:
    """The same router with one tier's held-out gains raised, so that it is the first choice everywhere."""
    tiers = tuple(
        replace(tier, gate=replace(tier.gate, gain=tier.gate.gain + 9, worth=tier.gate.worth + 9))
        if tier.name == name and tier.gate.worth is not None
        else tier
        for tier in router.tiers
    )
    guard = router.guard and replace(router.guard, any=router.guard.any.opened())
    return replace(router, tiers=tiers, guard=guard)
