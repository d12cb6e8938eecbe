"""Decisions with feedback -> a router that learned from them too, and whether it is better on some kept aside.

A log says what one pipeline did for a question; what the other three would have done is estimated from the questions of
the profile that are nearest by features. So a logged decision becomes a row of the profile: the pipeline taken has the
score that people gave and the tokens it spent (the neighbours' mean, where the upstream told none), the others have
their neighbours' means. A log does not say which of the tokens thrown away were generated, nor which prompts were
cached: the former are parted as all of the decision's tokens are, the latter are the neighbours' mean; both matter to
routers with prices alone.                                                                                        [ours]

People's scores are not on the scale of the profile's quality: many vote on bad answers alone. What the scores of the
answers given differ by from what the neighbours expect of them, in the mean, is added to the estimates of the answers
not given; otherwise any such habit would count as a gain of every other pipeline. It is not clipped: a bound would give
part of it back. One number cannot tell a habit from a pipeline that has become worse everywhere, and takes it for a
habit.                                                                                                            [ours]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apportion.core.arrays import NDArray
from apportion.core.artifact import digest_of
from apportion.core.bootstrap import Bootstrap, Interval
from apportion.core.errors import InputError
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.contest import Routed, play
from apportion.route.profile.file import read_profile
from apportion.route.profile.profile import Profile
from apportion.route.profile.texts import groups_of, same_text
from apportion.route.router.file import load_router, save_router
from apportion.route.router.report import training_record
from apportion.route.router.router import Router
from apportion.route.router.train import train_router
from apportion.route.router.utility import Scale, Weights

NEIGHBOURS = 15
HELD_SHARE = 0.3
FEWEST = 50  # decisions with feedback, below which nothing can be said
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Relearned:
    """What learning from feedback came to.

    Attributes:
        learned_from, judged_on: decisions with feedback in either part.
        gain: utility of the new router less that of the one in use, on those kept aside, at each decision's weights.
        agreeing: share of them where both choose the same.
        bias: mean of score - the quality that the profile expects of the answer given, over those learned from.
        unrecognised: decisions whose question was not kept, so that one asked twice may lie in both parts.
        unmeasured: those of both parts whose upstream told no tokens: theirs are their neighbours' too.
        refused: why the new router may not replace the one in use, whatever the gain; empty where nothing says so.
    """

    router: Router
    record: dict[str, Any]
    learned_from: int
    judged_on: int
    gain: Interval
    agreeing: float
    bias: float
    unrecognised: int
    unmeasured: int
    refused: str = ""

    @property
    def better(self) -> bool:
        """Whether the gain's 95 % interval lies above zero and nothing refuses it."""
        return self.gain.low > 0 and not self.refused


def relearn(records: Sequence[dict[str, Any]], profile: Path, router: Path, *, seed: int = 0) -> Relearned:
    """Learn again from a profile and from decisions with feedback, and compare with the router in use.

    Args:
        records: decisions as logged. profile: what the router in use was trained on. router: its folder.

    Returns:
        The new router and how it compares; nothing is written.

    Raises:
        InputError: decisions on fewer than 50 different questions have feedback and features, or the router was
            trained with prices and the profile does not hold prompt and completion tokens apart.
        ArtifactError: a file cannot be read.

    Cost: one training, as long as that of the router in use; with a second decision where that has one.
    """
    base, used = read_profile(profile).only_complete(), load_router(router)
    price = used.scale.price
    if price is not None and base.completion_tokens is None:
        raise InputError(
            f"--router {router}: was trained with prices, and --profile {profile} does not hold prompt and completion "
            "tokens apart",
            "give the profile that it was trained on",
        )
    usable = _enough(records)
    seen, judged = split(usable)
    bias = bias_of(seen, base)
    rows = as_profile(seen, base, bias)
    trained = train_router(joined(base, rows), seed=seed, stages=2 if used.second else 1, price=price)
    timed = used.has_latency and trained.router.has_latency
    mine, routes = utilities(trained.router, judged, base, used.scale, timed=timed, bias=bias)
    theirs, their_routes = utilities(used, judged, base, used.scale, timed=timed, bias=bias)
    groups = groups_of([one["question"] or "" for one in judged])
    same = len({one["score"] for one in usable}) == 1
    return Relearned(
        router=trained.router,
        record={**training_record(trained), "feedback": len(seen), "quality": "f1, and scores of feedback"},
        learned_from=len(seen),
        judged_on=len(judged),
        gain=Bootstrap(len(judged), seed, groups=groups).interval(mine - theirs),
        agreeing=float(np.mean([a == b for a, b in zip(routes, their_routes, strict=True)])),
        bias=bias,
        unrecognised=sum(not one["question"] for one in usable),
        unmeasured=sum(not _told(one) for one in usable),
        refused=f"every score is {usable[0]['score']:g}, which tells no answer from another" if same else "",
    )


def _enough(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that can be learned from.

    Raises:
        InputError: too few, or on too few different questions.
    """
    usable = [one for one in records if _usable(one)]
    different = len(set(map(_asked, usable)))
    if different < FEWEST:
        of = f", of {different} different questions" if different < len(usable) else ""
        raise InputError(
            f"--decisions: {len(usable)} decisions have a score and features{of}, expected at least {FEWEST}",
            "collect more feedback: POST /decisions/{id}/feedback",
        )
    return usable


def split(records: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those to learn from and those kept aside; a question asked again is on one side, where its text was kept."""
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for one in records:
        parts[int(digest_of(_asked(one))[:8], 16) % 100 < 100 * HELD_SHARE].append(one)
    return parts


def _asked(one: dict[str, Any]) -> str:
    """By what a decision's question is recognised."""
    return same_text(one["question"] or "") or str(one["id"])


def bias_of(records: Sequence[dict[str, Any]], base: Profile) -> float:
    """Mean of what people's scores of the answers given lie above what the neighbours expect of them."""
    taken = np.array([STRATEGIES.index(one["route"]) for one in records])
    expected = base.quality[neighbours(records, base), taken[:, None]].mean(axis=1)
    above = np.array([one["score"] for one in records]) - expected
    known = np.isfinite(above)  # of a route that the profile lacks nothing is expected
    return float(above[known].mean()) if known.any() else 0.0


def save(folder: Path, found: Relearned) -> None:
    """Write the new router."""
    save_router(folder, found.router, found.record)


def as_profile(records: Sequence[dict[str, Any]], base: Profile, bias: float = 0.0) -> Profile:
    """Decisions as rows of a profile, answers not given on the scale of the scores; see this file's head."""
    near = neighbours(records, base)
    rows = base.select(near[:, 0])
    quality, tokens, latency = (values[near].mean(axis=1) for values in (base.quality, base.tokens, base.latency_ms))
    quality = quality + bias
    for row, one in enumerate(records):
        column = STRATEGIES.index(one["route"])
        quality[row, column] = one["score"]
        if _told(one):
            tokens[row, column] = _answer_tokens(one)
    generated = _means(base.completion_tokens, near)
    if generated is not None:
        for row, one in enumerate(records):
            if _told(one):
                generated[row, STRATEGIES.index(one["route"])] = _answer_completion(one)
    cached = _means(base.cached_tokens, near)
    return replace(
        rows,
        dataset=("feedback",) * len(records),
        ids=tuple(one["id"] for one in records),
        question=tuple(one["question"] or one["id"] for one in records),
        quality=quality,
        em=quality,
        tokens=tokens,
        latency_ms=latency,
        features=features_of(records, base),
        completion_tokens=generated,
        cached_tokens=None if cached is None or generated is None else np.minimum(cached, tokens - generated),
    )


def joined(first: Profile, second: Profile) -> Profile:
    """Both profiles' questions, by the fields that learning reads."""
    rows = first.select(np.concatenate([np.arange(first.n), np.zeros(second.n, dtype=np.int64)]))

    def stacked(name: str) -> Floats:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    apart = first.completion_tokens is not None and second.completion_tokens is not None
    known = apart and first.cached_tokens is not None and second.cached_tokens is not None

    return replace(
        rows,
        dataset=first.dataset + second.dataset,
        ids=first.ids + second.ids,
        question=first.question + second.question,
        quality=stacked("quality"),
        em=stacked("em"),
        tokens=stacked("tokens"),
        latency_ms=stacked("latency_ms"),
        retrieval_ms=stacked("retrieval_ms"),
        features=stacked("features"),
        completion_tokens=stacked("completion_tokens") if apart else None,
        cached_tokens=stacked("cached_tokens") if known else None,
        answers=(),
    )


def utilities(
    router: Router,
    records: Sequence[dict[str, Any]],
    base: Profile,
    scale: Scale,
    *,
    timed: bool,
    bias: float = 0.0,
) -> tuple[Floats, list[str]]:
    """[n] estimated utility of a router's choices, and the choices: the score where it chooses as was logged.

    What is done before the last call (a draft, a look) is counted as `evaluate-router` counts it.

    Args:
        scale: what costs are measured by: the same for routers that are compared. timed: latency costs something.
        bias: of the scores (`bias_of`).
    """
    rows = as_profile(records, base, bias)
    asked = [Weights(one["token_weight"], one["latency_weight"] if timed else 0.0) for one in records]
    found, columns = np.zeros(len(records)), np.zeros(len(records), dtype=np.int64)
    for weights in sorted(set(asked)):
        at = np.array([row for row, one in enumerate(asked) if one == weights])
        part = rows.select(at)
        choice = Routed(router).choose(part, weights)
        played = play(part, choice, scale.price)
        found[at], columns[at] = played.utility(weights, scale), choice.columns
    return found, [STRATEGIES[column] for column in columns]


def neighbours(records: Sequence[dict[str, Any]], base: Profile) -> NDArray[np.int64]:
    """[n, 15] the questions of the profile nearest to each decision by standardised features."""
    known = np.nan_to_num(base.features, nan=np.nan)
    mean, spread = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    here = np.nan_to_num((features_of(records, base) - mean) / spread)
    there = np.nan_to_num((base.features - mean) / spread)
    distance = (here**2).sum(axis=1)[:, None] - 2 * here @ there.T + (there**2).sum(axis=1)
    nearest: NDArray[np.int64] = np.argsort(distance, axis=1, kind="stable")[:, : min(NEIGHBOURS, base.n)]
    return nearest


def features_of(records: Sequence[dict[str, Any]], base: Profile) -> Floats:
    """[n, f] in the profile's order; NaN where a decision did not measure one."""
    found = [[one["features"].get(name, np.nan) for name in base.feature_names] for one in records]
    return np.array(found, dtype=np.float64).reshape(len(records), len(base.feature_names))


def _usable(one: dict[str, Any]) -> bool:
    scored = one["score"] is not None and one["status"] == "ok"
    return scored and bool(one["features"]) and not one["shadow"] and one["route"] in STRATEGIES


def _told(one: dict[str, Any]) -> bool:
    """Whether the tokens of the answer are known; an answer of none is not one."""
    return bool(one["measured"]) and _answer_tokens(one) > 0


def _answer_tokens(one: dict[str, Any]) -> float:
    """Tokens of the answer alone; what was thrown away is counted where it is decided."""
    return float(one["prompt_tokens"] + one["completion_tokens"] - one["wasted_tokens"])


def _answer_completion(one: dict[str, Any]) -> float:
    """Those of them that were generated; what was thrown away is taken to have been made up like the whole."""
    total = one["prompt_tokens"] + one["completion_tokens"]
    return float(one["completion_tokens"] * _answer_tokens(one) / total) if total else 0.0


def _means(values: Floats | None, near: NDArray[np.int64]) -> Floats | None:
    """[n, 4] means of the neighbours' values; None where they were not recorded."""
    return None if values is None else np.asarray(values[near].mean(axis=1))
