"""Decides in numpy which strategy answers a question, at the cost weights of the request.

A router holds tiers, each a way to decide from some features: `full` reads all that is known before the first
decision, `lean` none of the draft's (for servers that return no log-probabilities), `asking` decides for each
question whether a draft is worth its cost, and cheaper rules read the question alone. A tier that looks has
the RAG answer made first and decides after it whether to reason. A guard says where any of them may decide;
elsewhere the best static strategy answers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.route.ask.features import is_draft
from apportion.route.ask.strategy import RAG, RAG_COT, STRATEGIES, USES_COT, USES_RAG
from apportion.route.profile.profile import Floats, Profile
from apportion.route.router.decider import Decider, heads_of
from apportion.route.router.gate import Gate
from apportion.route.router.policy import Policy
from apportion.route.router.second import Second
from apportion.route.router.utility import Scale, Weights

FULL, STATIC = "full", "static"
BY_ROW, BY_TEXT = 1, 2  # versions of `Router.trained_on`


@dataclass(frozen=True, slots=True)
class Tier:
    """A way to decide, how good it was on questions held out, and the temperatures of its heads.

    Attributes:
        temperatures: None for a head without a choice.
        looks: whether the RAG answer comes first wherever it retrieves, and the second decision after it.
    """

    name: str
    decider: Decider
    gate: Gate
    temperatures: tuple[float | None, float | None]
    looks: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The features it reads."""
        return self.decider.reader.names

    @property
    def draft_names(self) -> tuple[str, ...]:
        """The features that need a draft."""
        return tuple(name for name in self.names if is_draft(name))

    @property
    def asking(self) -> Policy | None:
        """Its network, where that decides for each question if a draft is to be made."""
        return self.decider if isinstance(self.decider, Policy) and self.decider.asks else None

    @property
    def may_draft(self) -> bool:
        """Whether it needs a model that returns log-probabilities."""
        return self.asking is not None or bool(self.draft_names)


@dataclass(frozen=True, slots=True)
class Guard:
    """Where any tier may decide, as held-out gains of choosing among them say.

    Attributes:
        any: with all tiers. undrafted: with those that need no draft.
    """

    any: Gate
    undrafted: Gate


@dataclass(frozen=True, slots=True)
class Decision:
    """One routing decision and how it was made.

    Attributes:
        tier: the tier that decided, or "static" when none may decide at these weights.
        p_rag, p_cot: probabilities of the heads, weighted by what is at stake (see `calibration`); None when
            static, and for a head that has no choice among the strategies recorded.
        features_used: the names read. missing: those among them replaced by their training mean.
        fallback_reason: why a weaker tier decided than the router has; empty when none did.
        look: the strategy is "rag" for now: make its answer, then ask `Router.decide_after`.
    """

    strategy: str
    need_rag: bool
    need_cot: bool
    weights: Weights
    tier: str
    p_rag: float | None
    p_cot: float | None
    features_used: tuple[str, ...]
    missing: tuple[str, ...]
    fallback_reason: str
    look: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was decided for n questions at the same weights.

    Attributes:
        columns: the strategy whose answer is given. tiers: the tier that decided each.
        looked: whether the RAG answer was looked at before.
    """

    columns: Int[ndarray, " n"]
    tiers: tuple[str, ...]
    looked: Bool[ndarray, " n"]


@dataclass(frozen=True, slots=True)
class Router:
    """Trained tiers, and the training means that give the best static strategy at any weights.

    Attributes:
        means: [3, 4] mean quality, scaled tokens and scaled latency, no probes counted.
        has_latency: whether it was trained with latencies; if not, latency weights must be 0.
        source: digests and names of what it was trained on: model, corpus, prompts, k.
        trained_on: keys of the training questions, so that nobody judges it by them unknowingly (`has_seen`).
        guard: None in routers of earlier versions, where each tier's own gate is asked.
        second: decides after a retrieved answer; None in a router of one decision.
        keyed_by: what the keys are of: BY_TEXT, or BY_ROW (data set, id and text) in routers of earlier versions.
    """

    tiers: tuple[Tier, ...]
    columns: tuple[int, ...]
    means: Floats
    scale: Scale
    has_latency: bool
    source: Mapping[str, str | int]
    trained_on: NDArray[np.uint64]
    guard: Guard | None = None
    second: Second | None = None
    keyed_by: int = BY_TEXT

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the strategies it may choose."""
        return tuple(STRATEGIES[column] for column in self.columns)

    def __post_init__(self) -> None:
        names = [tier.name for tier in self.tiers]
        if any(tier.asking for tier in self.tiers) and FULL not in names:
            raise InputError(f"router: tiers {names}: one asks for a draft that no full tier reads")
        if any(tier.looks for tier in self.tiers) and self.second is None:
            raise InputError(f"router: tiers {names}: one looks at an answer and there is no second decision")

    def has_seen(self, profile: Profile) -> Bool[ndarray, " n"]:
        """Which questions it learned from; of BY_ROW, only those with the data set and id that they had then."""
        keys = profile.text_keys() if self.keyed_by == BY_TEXT else profile.keys()
        return np.isin(keys, self.trained_on)

    def static_column(self, weights: Weights) -> int:
        """The best static strategy in training at these weights; among equals the one with fewer tokens."""
        quality, tokens, latency = self.means
        values = quality - weights.token * tokens - weights.latency * latency
        return max(self.columns, key=lambda column: (values[column], -tokens[column]))

    def tier_at(self, weights: Weights, *, draft: bool = True) -> Tier | None:
        """The tier of the largest assured held-out gain where one may decide; None: the best static strategy.

        Args:
            draft: whether draft features can be had.
        """
        self._check(weights)
        usable = [tier for tier in self.tiers if draft or not tier.may_draft]
        if self.guard is None:
            opened = (tier for tier in usable if tier.gate.is_open(weights))
            return max(opened, key=lambda tier: tier.gate.at(weights)[0], default=None)
        if not (self.guard.any if draft else self.guard.undrafted).is_open(weights):
            return None
        return max(usable, key=lambda tier: tier.gate.assured(weights), default=None)

    def one_decision(self) -> "Router":
        """The same router without its second decision."""
        return replace(self, tiers=tuple(tier for tier in self.tiers if not tier.looks), second=None)

    def features_wanted(self, weights: Weights, *, draft: bool = True) -> tuple[str, ...]:
        """The features to measure before deciding at these weights: none where no tier may decide.

        Draft features among them are worth measuring only where `wants_draft` says so; what is read of a
        retrieved answer comes later (`second`).
        """
        tier = self.tier_at(weights, draft=draft)
        if tier is None:
            return ()
        return (*tier.names, *self._full.draft_names) if tier.asking else tier.names

    @property
    def _full(self) -> Tier:
        return next(tier for tier in self.tiers if tier.name == FULL)

    def wants_draft(self, features: Mapping[str, float | None], weights: Weights) -> bool:
        """Whether to make a draft for a question whose other features are these."""
        tier = self.tier_at(weights)
        if tier is None or tier.asking is None:
            return tier is not None and bool(tier.draft_names)
        return _asks(tier.asking, features, weights)

    def decide(
        self, features: Mapping[str, float | None], token_weight: float, latency_weight: float = 0.0
    ) -> Decision:
        """The strategy for one question.

        Args:
            features: by name; others than the router reads are ignored. Without draft features a tier
                that needs none decides; any other missing feature is replaced by its training mean and named.
            token_weight, latency_weight: as in `Weights`.

        Returns:
            The decision; where it says `look`, the RAG answer is to be made and `decide_after` asked.

        Raises:
            InputError: a weight below 0 or not finite; a latency weight for a router that knows no latency.

        Cost: about 0.1 ms.
        """
        weights = Weights(token_weight, latency_weight)
        tier, reason = self.tier_at(weights), ""
        if tier and tier.asking and _asks(tier.asking, features, weights):
            tier = self._full
        if tier and any(not _known(features.get(name)) for name in tier.draft_names):
            reason = f"no draft features, so not the {tier.name} tier"
            tier = self.tier_at(weights, draft=False)
        if tier is None:
            return self._static(weights, reason)
        return self._decided(tier, features, weights, reason)

    def _decided(self, tier: Tier, features: Mapping[str, float | None], weights: Weights, reason: str) -> Decision:
        row, missing = tier.decider.reader.row(features)
        scores = tier.decider.scores(np.array([row]).reshape(1, len(row)), weights)
        column = int(scores[0].argmax())
        look = tier.looks and USES_RAG[column]
        rag, cot = heads_of(scores)[0].tolist()
        return Decision(
            strategy=STRATEGIES[RAG if look else column],
            need_rag=USES_RAG[column],
            need_cot=USES_COT[RAG if look else column],
            weights=weights,
            tier=tier.name,
            p_rag=_tempered(rag, tier.temperatures[0]),
            p_cot=_tempered(cot, tier.temperatures[1]),
            features_used=tier.names,
            missing=missing,
            fallback_reason=reason,
            look=look,
        )

    def decide_after(self, decision: Decision, features: Mapping[str, float | None]) -> Decision:
        """The second decision: whether the RAG answer stands or RAG+CoT follows on the same passages.

        Args:
            decision: a first one that says `look`.
            features: of the question, the search and the answer, by name; missing ones are named.
        """
        if self.second is None or not decision.look:
            raise InputError("decide_after: the first decision did not ask to look", "ask where `look` is true")
        row, missing = self.second.reader.row(features)
        reason = bool(self.second.worth(np.array([row]), decision.weights)[0] > 0)
        return replace(
            decision,
            strategy=STRATEGIES[RAG_COT if reason else RAG],
            need_cot=reason,
            p_cot=None,
            features_used=(*decision.features_used, *self.second.reader.names),
            missing=tuple(dict.fromkeys((*decision.missing, *missing))),
            look=False,
        )

    def decide_many(self, features: Float[ndarray, "n f"], names: tuple[str, ...], weights: Weights) -> Chosen:
        """Both decisions for n questions whose features are known already."""
        rows = np.arange(len(features))
        columns, tiers = np.full(len(rows), self.static_column(weights)), np.full(len(rows), STATIC, dtype=object)
        looks = np.zeros(len(rows), dtype=bool)
        wanted = self.tier_at(weights)
        if wanted and wanted.asking:
            read = wanted.decider.reader.standardise(wanted.decider.reader.take(features, names))
            asks = wanted.asking.wants_draft(read, weights)
            columns[~asks] = wanted.decider.scores(read[~asks], weights).argmax(axis=1)
            tiers[~asks], looks[~asks] = wanted.name, wanted.looks
            rows, wanted = rows[asks], self._full
        drafted = _has_all(features[rows], names, wanted.draft_names if wanted else ())
        for part, tier in ((rows[drafted], wanted), (rows[~drafted], self.tier_at(weights, draft=False))):
            if tier and len(part):
                reader = tier.decider.reader
                read = reader.standardise(reader.take(features[part], names))
                columns[part] = tier.decider.scores(read, weights).argmax(axis=1)
                tiers[part], looks[part] = tier.name, tier.looks
        looked = looks & np.array(USES_RAG)[columns]
        if self.second is not None and looked.any():
            reader = self.second.reader
            read = reader.standardise(reader.take(features[looked], names))
            columns[looked] = np.where(self.second.worth(read, weights) > 0, RAG_COT, RAG)
        return Chosen(columns, tuple(tiers.tolist()), looked)

    def _static(self, weights: Weights, reason: str) -> Decision:
        column = self.static_column(weights)
        why = "no held-out gain over the best static strategy at these weights"
        return Decision(
            strategy=STRATEGIES[column],
            need_rag=USES_RAG[column],
            need_cot=USES_COT[column],
            weights=weights,
            tier=STATIC,
            p_rag=None,
            p_cot=None,
            features_used=(),
            missing=(),
            fallback_reason=f"{reason}; {why}" if reason else why,
        )

    def _check(self, weights: Weights) -> None:
        if weights.latency and not self.has_latency:
            raise InputError(
                f"latency weight {weights.latency}: this router was trained without latencies, expected 0",
                "train it on a profile with latencies, or leave the latency weight out",
            )


def _asks(asking: Policy, features: Mapping[str, float | None], weights: Weights) -> bool:
    row, _ = asking.reader.row(features)
    return bool(asking.wants_draft(np.array([row]), weights)[0])


def _has_all(features: Float[ndarray, "n f"], names: tuple[str, ...], wanted: tuple[str, ...]) -> Bool[ndarray, " n"]:
    """Whether a question has every one of these features."""
    if not all(name in names for name in wanted):
        return np.zeros(len(features), dtype=bool)
    return np.asarray(np.isfinite(features[:, [names.index(name) for name in wanted]]).all(axis=1))


def _tempered(logit: float, temperature: float | None) -> float | None:
    return None if temperature is None else 0.5 * (1 + math.tanh(logit / temperature / 2))


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
