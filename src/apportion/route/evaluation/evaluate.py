"""A router against every static pipeline, the oracle and baselines: K folds, or a train and a test profile.

Static pipelines, baselines and the router are fitted on the same questions and play questions they have not
seen. "Best static" is the strategy with the highest mean utility on the training questions at the weights;
the one best on the test questions in hindsight is reported beside it.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from apportion.core.bootstrap import Bootstrap
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.contenders import BestStatic, Routed, RouterStatic
from apportion.route.evaluation.contest import Field, Heat, hold
from apportion.route.evaluation.evaluation import Evaluation, LeftOut
from apportion.route.evaluation.field import (
    WHAT,
    EvaluationPlan,
    calibrations_of,
    features_read,
    fit_field,
    plain_field,
    ungated,
)
from apportion.route.evaluation.summary import Judge, frontier, judged, savings, summarise
from apportion.route.profile.profile import Profile
from apportion.route.router.folds import others, split_folds
from apportion.route.router.gate import TOKEN_NODES
from apportion.route.router.router import Router
from apportion.route.router.train import train_router
from apportion.route.router.utility import Scale, Weights, scale_of, weight_grid

SMALLEST_FAMILY = 20
NOT_LEFT = "leave-one-family-out: not asked for, or the router was given"


def evaluate(
    profile: Profile, plan: EvaluationPlan, *, train: Profile | None = None, router: Router | None = None
) -> Evaluation:
    """Compare on every complete question of the profile.

    Args:
        train: questions to fit on; without it, K folds of the profile.
        router: a router that is there already; then nothing is trained in its place, and baselines and
            ablations are fitted on `train`, or dropped without it.

    Raises:
        InputError: a strategy of the router is not in the profile, or too few questions.
    """
    whole = profile.only_complete()
    _refuse_unrecorded(whole, router.columns if router else (train or whole).columns)
    scale = router.scale if router else scale_of(train or whole)
    heats, dropped, records = _heats(whole, plan, scale, train, router)
    grid = weight_grid(plan.token_weights, plan.latency_weights, timed=_timed(whole, scale))
    extra = _frontier_weights(_timed(whole, scale))
    judge = Judge(whole, scale, hold(whole, heats, grid, extra), Bootstrap(whole.n, plan.seed))
    contenders = list(heats[0].field)
    rows = [judge.at(weights, contenders) for weights in grid]
    wanted = plan.leave_out and router is None
    left_out, not_left = _leave_out(whole, plan, scale, grid) if wanted else ((), (NOT_LEFT,))
    return Evaluation(
        questions=whole.n,
        families={name: whole.dataset.count(name) for name in dict.fromkeys(whole.dataset)},
        source=asdict(whole.source),
        protocol=_protocol(plan, heats, scale, train, router),
        trained_on_these=_seen_before(whole, train, router),
        dropped=(*whole.dropped, *dropped, *not_left, *_lacking(whole, router)),
        summary=summarise(judge, rows, contenders),
        weights=tuple(rows),
        savings=savings(judge, [*grid, *extra]),
        left_out=left_out,
        frontier=frontier(judge, extra),
        calibration=calibrations_of(router, whole) if router else records,
    )


def _refuse_unrecorded(profile: Profile, columns: tuple[int, ...]) -> None:
    wrong = [STRATEGIES[column] for column in columns if column not in profile.columns]
    if wrong:
        raise InputError(
            f"profile: {', '.join(wrong)} not recorded, and what was trained may choose them",
            "profile all the strategies that the router was trained on",
        )


def _seen_before(profile: Profile, train: Profile | None, router: Router | None) -> int:
    """How many of the test questions the router, or whatever was fitted on `train`, learned from."""
    seen = [router.trained_on] if router else []
    seen += [train.keys()] if train else []
    return int(np.isin(profile.keys(), np.concatenate(seen)).sum()) if seen else 0


def _lacking(profile: Profile, router: Router | None) -> tuple[str, ...]:
    """The features that a given router reads and the profile does not have."""
    wanted = {name for tier in router.tiers for name in tier.policy.names} if router else set()
    absent = sorted(wanted - set(profile.feature_names))
    return (f"features the router reads and the profile lacks: {', '.join(absent)}",) if absent else ()


def _timed(profile: Profile, scale: Scale) -> bool:
    return profile.has_latency and scale.latency_ms is not None


def _frontier_weights(timed: bool) -> list[Weights]:
    """Token weights alone, latency weights alone, and both equal."""
    found = [Weights(value) for value in TOKEN_NODES]
    if timed:
        found += [Weights(0.0, value) for value in TOKEN_NODES]
        found += [Weights(value, value) for value in TOKEN_NODES]
    return found


def _heats(
    profile: Profile, plan: EvaluationPlan, scale: Scale, train: Profile | None, router: Router | None
) -> tuple[list[Heat], tuple[str, ...], tuple[dict[str, Any], ...]]:
    """Fitted contenders per fold, what was dropped, and the calibration of each trained router."""
    everything = np.arange(profile.n)
    if router is not None and train is None:
        contestants = {**plain_field(profile, scale, plan.seed), "router": Routed(router)}
        contestants |= {"best_static": RouterStatic(router), "router_ungated": Routed(ungated(router))}
        said = "fitted baselines and ablations: no training profile was given"
        return [Heat(contestants, everything)], (said,), ()
    if train is not None:
        whole = train.only_complete()
        contestants, records = fit_field(whole, plan, scale, router)
        return [Heat(contestants, everything)], (), records
    heats: list[Heat] = []
    kept: list[dict[str, Any]] = []
    held = split_folds(profile.dataset, plan.folds, plan.seed)
    with progress("evaluate", len(held), "folds") as advance:
        for rows in held:
            contestants, records = fit_field(profile.select(others(rows, profile.n)), plan, scale, None)
            heats.append(Heat(contestants, rows))
            kept.extend(records)
            advance()
    return heats, (), tuple(kept)


def _leave_out(
    profile: Profile, plan: EvaluationPlan, scale: Scale, grid: list[Weights]
) -> tuple[tuple[LeftOut, ...], tuple[str, ...]]:
    """Each family judged by a router that never saw it."""
    names = np.array(profile.dataset)
    families = [str(f) for f in np.unique(names)]
    if len(families) < 2:
        return (), ("leave-one-family-out: the profile holds one family",)
    large = [family for family in families if (names == family).sum() >= SMALLEST_FAMILY]
    small = sorted(set(families) - set(large))
    said = tuple(f"leave-one-family-out of {f}: fewer than {SMALLEST_FAMILY} questions" for f in small)
    found = []
    with progress("leave-one-family-out", len(large), "families") as advance:
        for family in large:
            seen, unseen = profile.select(names != family), profile.select(names == family)
            found.append(_left_out(family, seen, unseen, plan, scale, grid))
            advance()
    return tuple(found), said


def _left_out(
    family: str, seen: Profile, unseen: Profile, plan: EvaluationPlan, scale: Scale, grid: list[Weights]
) -> LeftOut:
    router = Routed(train_router(seen, plan.training, seed=plan.seed, scale=scale).router)
    contestants: Field = {"router": router, "best_static": BestStatic(seen, scale)}
    results = hold(unseen, [Heat(contestants, np.arange(unseen.n))], grid, ())
    judge = Judge(unseen, scale, results, Bootstrap(unseen.n, plan.seed))
    mean = np.mean([judge.value("router", w) - judge.value("best_static", w) for w in grid], axis=0)
    gains = tuple((w.token, w.latency, judge.gain("best_static", w)) for w in grid)
    return LeftOut(family, unseen.n, gains, judged("best_static", judge.bootstrap.interval(mean)).interval)


def _protocol(
    plan: EvaluationPlan, heats: list[Heat], scale: Scale, train: Profile | None, router: Router | None
) -> dict[str, Any]:
    split = "a separate training profile" if train else f"{plan.folds} folds, stratified by dataset"
    return {
        "split": "the given router; nothing trained" if router and not train else split,
        "router": "given" if router else "trained here",
        "training_questions": train.only_complete().n if train else None,
        "seed": plan.seed,
        "scale": asdict(scale),
        "interval": "95 % bootstrap over questions, paired; how training might have gone is not in it",
        "best_static": "chosen on training questions at each weights; hindsight: on the test questions",
        "draft_cost": "Direct's tokens and latency, added to every other route that drafted",
        "contenders": {name: WHAT[name] for name in heats[0].field if name in WHAT},
        "features": features_read(heats[0].field),
        "training": asdict(plan.training),
    }
