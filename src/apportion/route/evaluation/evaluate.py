"""A router against every static pipeline, the oracle and baselines: K folds, or a train and a test profile.

Static pipelines, baselines and the router are fitted on the same questions and play questions they have not
seen. "Best static" is the strategy with the highest mean utility on the training questions at the weights;
the one best on the test questions in hindsight is reported beside it. Each split is played as soon as it is
fitted, and kept: a split that fails costs only its own questions.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from apportion.core.bootstrap import Bootstrap
from apportion.core.errors import ApportionError, InputError
from apportion.core.progress import progress
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.ceilings import RepeatedOracle
from apportion.route.evaluation.contest import BestStatic, Board, Contender, Part, Routed, hold, pool
from apportion.route.evaluation.evaluation import Evaluation, LeftOut
from apportion.route.evaluation.field import WHAT, EvaluationPlan, Fitted, calibrations_of, fit_field, given_field
from apportion.route.evaluation.parts import Parts
from apportion.route.evaluation.signals import signals
from apportion.route.evaluation.summary import Judge, frontier, judged, savings, summarise
from apportion.route.profile.profile import Profile
from apportion.route.router.folds import others, split_folds
from apportion.route.router.gate import TOKEN_NODES
from apportion.route.router.price import Price
from apportion.route.router.router import BY_ROW, Router
from apportion.route.router.train import train_router, usable
from apportion.route.router.utility import Ints, Weights, scale_of, weight_grid

SMALLEST_FAMILY = 20
NOT_LEFT = "leave-one-family-out: not asked for, or nothing to train on was given"


@dataclass(frozen=True, slots=True)
class Task:
    """What is judged, what is learned from, and how.

    Attributes:
        profile: complete questions that are judged. train: what is fitted on; None: folds of the profile.
        router: given, so not trained. repeat: a second run of the same questions.
    """

    profile: Profile
    plan: EvaluationPlan
    board: Board
    train: Profile | None
    router: Router | None
    repeat: Profile | None

    @property
    def split(self) -> str:
        """How the questions were split, in words."""
        if self.router and self.train is None:
            return "the given router; nothing trained"
        if self.train is not None:
            return "a separate training profile"
        together = ", equal texts in one fold" if self.profile.different < self.profile.n else ""
        return f"{self.plan.folds} folds, stratified by dataset{together}"


def evaluate_router(
    profile: Profile,
    plan: EvaluationPlan | None = None,
    *,
    train: Profile | None = None,
    router: Router | None = None,
    repeat: Profile | None = None,
    price: Price | None = None,
    parts: Parts | None = None,
) -> Evaluation:
    """Compare a router with every static pipeline, the oracle and baselines on every complete question.

    Args:
        profile: n questions with the outcomes of every strategy, to be judged by.
        plan: what is compared; the command's defaults without it.
        train: questions to fit on; without it, K folds of the profile.
        router: a router that is there already; then nothing is trained in its place, and baselines and
            ablations are fitted on `train`, or dropped without it.
        repeat: another run of the same pipelines on the same questions: what of the oracle is luck.
        price: of tokens by kind; a router that is given has its own.
        parts: where finished splits are kept, so that they are not fitted again; nowhere without it.

    Returns:
        All figures; `failed` names splits that could not be fitted, whose questions are in no figure.

    Raises:
        InputError: before anything is fitted: too few questions for the folds, a strategy of the router not in
            the profile, a repeated run of other questions. Or every split failed.

    Cost: with the defaults and 500 questions about a minute a fold; a quarter of it without ablations.

    Source: METHODS section 2 ("always report against"); intervals by a paired bootstrap over questions.

    >>> from apportion.demo.recorded import recorded
    >>> from apportion.route.router import TrainingPlan, train_router
    >>> brief = TrainingPlan(folds=2, seeds=1, steps=20, check_every=10)
    >>> router = train_router(recorded("train").select(np.arange(60)), brief).router
    >>> found = evaluate_router(recorded("test").select(np.arange(40)), router=router)
    >>> found.questions, found.summary.weights
    (40, 21)
    """
    plan = plan or EvaluationPlan()
    task = _task(profile, plan, train, router, repeat, price)
    _check(task)
    played, failed, dropped = _play(task, parts or Parts(None))
    part = pool(played)
    whole = task.profile.select(part.rows)
    judge = Judge(whole, task.board.scale, part, Bootstrap(whole.n, plan.seed, groups=whole.groups))
    rows = tuple(judge.at(weights) for weights in task.board.grid)
    can_leave = plan.leave_out and (router is None or train is not None)
    left_out, not_left = _leave_out(task) if can_leave else ((), (NOT_LEFT,))
    return Evaluation(
        questions=whole.n,
        families={name: whole.dataset.count(name) for name in dict.fromkeys(whole.dataset)},
        source=asdict(whole.source),
        protocol=_protocol(task, judge),
        repeated_texts=whole.n - whole.different,
        trained_on_these=_seen_before(whole, train, router),
        dropped=(*whole.dropped, *dropped, *not_left, *_lacking(whole, router)),
        failed=failed,
        summary=summarise(judge, rows),
        weights=rows,
        savings=savings(judge, task.board.all),
        left_out=left_out,
        frontier=frontier(judge, task.board.extra),
        calibration=calibrations_of(router, whole) if router else part.calibration,
        signals=signals(whole),
    )


def _task(
    profile: Profile,
    plan: EvaluationPlan,
    train: Profile | None,
    router: Router | None,
    repeat: Profile | None,
    price: Price | None,
) -> Task:
    whole = profile.only_complete()
    seen = train.only_complete() if train else None
    if router and price and price != router.scale.price:
        raise InputError("--price: the router was trained with its own price", "leave --price out")
    scale = router.scale if router else scale_of(seen or whole, price)
    timed = whole.has_latency and scale.latency_ms is not None
    grid = tuple(weight_grid(plan.token_weights, plan.latency_weights, timed=timed))
    board = Board(scale, grid, tuple(_frontier_weights(timed=timed)))
    return Task(whole, plan, board, seen, router, repeat.only_complete() if repeat else None)


def _check(task: Task) -> None:
    """Refuse what would fail after the work has begun."""
    _refuse_unrecorded(task.profile, task.router.columns if task.router else (task.train or task.profile).columns)
    if task.repeat:
        RepeatedOracle(task.repeat, task.board.scale).choose(task.profile, Weights(0.0))
    if task.router and task.train is None:
        return
    needed = 4 * task.plan.training.folds
    if task.train is not None:
        smallest, where = usable(task.train).different, "--train"
    else:
        usable(task.profile)
        groups = task.profile.groups
        left = [len(np.unique(groups[others(rows, task.profile.n)])) for rows in _folds(task)]
        smallest, where = min(left), f"each of {task.plan.folds} folds"
    if smallest < needed:
        raise InputError(
            f"{where}: leaves {smallest} questions to train on, and training needs {needed} "
            f"({task.plan.training.folds} folds of its own of at least 4)",
            "profile more questions, or judge a trained router with --router",
        )


def _refuse_unrecorded(profile: Profile, columns: tuple[int, ...]) -> None:
    wrong = [STRATEGIES[column] for column in columns if column not in profile.columns]
    if wrong:
        raise InputError(
            f"profile: {', '.join(wrong)} not recorded, and what was trained may choose them",
            "profile all the strategies that the router was trained on",
        )


def _frontier_weights(*, timed: bool) -> list[Weights]:
    """Token weights alone, latency weights alone, and both equal."""
    found = [Weights(value) for value in TOKEN_NODES]
    if timed:
        found += [Weights(0.0, value) for value in TOKEN_NODES]
        found += [Weights(value, value) for value in TOKEN_NODES]
    return found


def _play(task: Task, parts: Parts) -> tuple[list[Part], tuple[str, ...], tuple[str, ...]]:
    """What was played on each split, which splits failed and why, and what was dropped."""
    everything = np.arange(task.profile.n)
    if task.router is not None and task.train is None:
        fitted = given_field(task.profile, task.router, task.plan.seed, task.repeat)
        said = "fitted baselines and ablations: no training profile was given"
        return [_played(task, fitted, everything)], (), (said,)
    if task.train is not None:
        fitted = fit_field(task.train, task.plan, task.board.scale, router=task.router, repeat=task.repeat)
        return [_played(task, fitted, everything)], (), ()
    found: list[Part] = []
    failed: list[str] = []
    held = _folds(task)
    with progress("evaluate", len(held), "folds") as advance:
        for fold, rows in enumerate(held):
            try:
                found.append(parts.load(fold, rows) or parts.save(fold, _fold(task, rows)))
            except ApportionError as error:
                failed.append(f"fold {fold + 1} of {len(held)} ({len(rows)} questions): {error.problem}")
            advance()
    if not found:
        raise InputError(f"every fold failed: {'; '.join(failed)}", "see to the first reason")
    return found, tuple(failed), ()


def _folds(task: Task) -> list[Ints]:
    return split_folds(task.profile.dataset, task.plan.folds, task.plan.seed, task.profile.groups)


def _fold(task: Task, rows: Ints) -> Part:
    """Everyone fitted on the other folds, playing this one."""
    seen = task.profile.select(others(rows, task.profile.n))
    return _played(task, fit_field(seen, task.plan, task.board.scale, repeat=task.repeat), rows)


def _played(task: Task, fitted: Fitted, rows: Ints) -> Part:
    part = hold(task.profile, rows, fitted.contenders, task.board)
    return replace(part, calibration=fitted.calibration, features=fitted.features)


def _seen_before(profile: Profile, train: Profile | None, router: Router | None) -> int:
    """How many of the test questions the router, or whatever was fitted on `train`, learned from."""
    seen = router.has_seen(profile) if router else np.zeros(profile.n, dtype=bool)
    if train:
        seen |= np.isin(profile.text_keys(), train.text_keys())
    return int(seen.sum())


def _lacking(profile: Profile, router: Router | None) -> tuple[str, ...]:
    """What a given router lacks: features that it reads and the profile has not, texts that it never noted."""
    wanted = {name for tier in router.tiers for name in tier.names} if router else set()
    absent = sorted(wanted - set(profile.feature_names))
    said = [f"features the router reads and the profile lacks: {', '.join(absent)}"] if absent else []
    if router and router.keyed_by == BY_ROW:
        said.append(
            "training questions by their text: the router is of an earlier version and knows them by data set and id "
            "alone, so those of another file are not counted"
        )
    return tuple(said)


def _leave_out(task: Task) -> tuple[tuple[LeftOut, ...], tuple[str, ...]]:
    """Each family judged by a router trained on the others (of the training profile, where there is one)."""
    names, train = np.array(task.profile.dataset), task.train or task.profile
    families = [str(family) for family in np.unique(names)]
    if len(families) < 2:
        return (), ("leave-one-family-out: the profile holds one family",)
    found: list[LeftOut] = []
    said: list[str] = []
    with progress("leave-one-family-out", len(families), "families") as advance:
        for family in families:
            unseen = task.profile.select(names == family)
            try:
                apart = ~np.isin(train.text_keys(), unseen.text_keys())  # a text may be in several families
                seen = train.select((np.array(train.dataset) != family) & apart)
                found.append(_left_out(task, family, seen, unseen))
            except ApportionError as error:
                said.append(f"leave-one-family-out of {family}: {error.problem}")
            advance()
    return tuple(found), tuple(said)


def _left_out(task: Task, family: str, seen: Profile, unseen: Profile) -> LeftOut:
    if unseen.n < SMALLEST_FAMILY:
        raise InputError(f"fewer than {SMALLEST_FAMILY} questions")
    plan, scale = task.plan, task.board.scale
    router = train_router(seen, plan.training, seed=plan.seed, scale=scale, stages=plan.stages).router
    field: dict[str, Contender] = {"router": Routed(router), "best_static": BestStatic(seen, scale)}
    part = hold(unseen, np.arange(unseen.n), field, replace(task.board, extra=()))
    judge = Judge(unseen, scale, part, Bootstrap(unseen.n, plan.seed, groups=unseen.groups))
    grid = task.board.grid
    mean = np.mean([judge.value("router", w) - judge.value("best_static", w) for w in grid], axis=0)
    gains = tuple((w.token, w.latency, judge.gain("best_static", w)) for w in grid)
    return LeftOut(family, unseen.n, gains, judged("best_static", judge.bootstrap.interval(mean)).interval)


def _protocol(task: Task, judge: Judge) -> dict[str, Any]:
    return {
        "split": task.split,
        "router": "given" if task.router else "trained here",
        "stages": 2 if "one_decision" in judge.names else 1,
        "training_questions": task.train.n if task.train else None,
        "seed": task.plan.seed,
        "scale": asdict(task.board.scale),
        "interval": "95 % bootstrap over questions, paired; how training might have gone is not in it",
        "best_static": "chosen on training questions at each weights, so folds may choose differently; hindsight: "
        "on the test questions",
        "draft_cost": "Direct's tokens and latency, added to every other route that drafted",
        "look_cost": "RAG's tokens and latency, added where RAG+CoT followed a retrieved answer",
        "contenders": {name: WHAT[name] for name in judge.names if name in WHAT},
        "features": list(judge.part.features),
        "training": asdict(task.plan.training),
    }
