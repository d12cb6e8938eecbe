"""Decides in numpy which strategy answers a question, at the cost weights of the request.

A router holds up to three tiers: `full` reads every feature, `lean` all but those of the draft (for servers
that return no log-probabilities). A third, `asking`, reads what `lean` reads and decides for each question
whether the draft is worth its cost; if so, `full` decides after it. Each tier has a gate; where no gate is
open the best static strategy answers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from apportion.core.arrays import NDArray
from apportion.core.errors import InputError
from apportion.route.ask.strategy import STRATEGIES, USES_COT, USES_RAG
from apportion.route.profile.profile import Bools, Floats
from apportion.route.router.gate import Gate
from apportion.route.router.policy import Policy, choose, choose_one
from apportion.route.router.utility import Ints, Scale, Weights

FULL, LEAN, ASKING, STATIC = "full", "lean", "asking", "static"


@dataclass(frozen=True, slots=True)
class Tier:
    """A policy, where it may decide, and the temperatures of its heads; None for a head without a choice."""

    name: str
    policy: Policy
    gate: Gate
    temperatures: tuple[float | None, float | None]

    @property
    def draft_names(self) -> tuple[str, ...]:
        """The features that need a draft."""
        return tuple(name for name in self.policy.names if name.startswith("draft_"))

    @property
    def asks(self) -> bool:
        """Whether it decides for each question if a draft is to be made."""
        return self.policy.layers.heads == 3

    @property
    def may_draft(self) -> bool:
        """Whether it needs a model that returns log-probabilities."""
        return self.asks or bool(self.draft_names)


@dataclass(frozen=True, slots=True)
class Decision:
    """One routing decision and how it was made.

    Attributes:
        tier: "full", "lean", or "static" when no policy may decide at these weights.
        p_rag, p_cot: probabilities of the heads, weighted by what is at stake (see `calibration`); None when
            static, and for a head that has no choice among the strategies recorded.
        features_used: the names read. missing: those among them replaced by their training mean.
        fallback_reason: why a weaker tier decided than the router has; empty when none did.
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


@dataclass(frozen=True, slots=True)
class Router:
    """Trained tiers, best first, and the training means that give the best static strategy at any weights.

    Attributes:
        means: [3, 4] mean quality, scaled tokens and scaled latency, no probes counted.
        has_latency: whether it was trained with latencies; if not, latency weights must be 0.
        source: digests and names of what it was trained on: model, corpus, prompts, k.
        trained_on: keys of the training questions, so that nobody judges it by them unknowingly.
    """

    tiers: tuple[Tier, ...]
    columns: tuple[int, ...]
    means: Floats
    scale: Scale
    has_latency: bool
    source: Mapping[str, str | int]
    trained_on: NDArray[np.uint64]

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the strategies it may choose."""
        return tuple(STRATEGIES[column] for column in self.columns)

    def __post_init__(self) -> None:
        names = [tier.name for tier in self.tiers]
        if any(tier.asks for tier in self.tiers) and FULL not in names:
            raise InputError(f"router: tiers {names}: one asks for a draft that no full tier reads")

    def static_column(self, weights: Weights) -> int:
        """The best static strategy in training at these weights; among equals the one with fewer tokens."""
        quality, tokens, latency = self.means
        values = quality - weights.token * tokens - weights.latency * latency
        return max(self.columns, key=lambda column: (values[column], -tokens[column]))

    def tier_at(self, weights: Weights, *, draft: bool = True) -> Tier | None:
        """The tier with the largest held-out gain whose gate is open; None: the best static strategy.

        Args:
            draft: whether draft features can be had.
        """
        self._check(weights)
        usable = (tier for tier in self.tiers if draft or not tier.may_draft)
        opened = [(tier.gate.at(weights)[0], tier) for tier in usable if tier.gate.is_open(weights)]
        return max(opened, key=lambda pair: pair[0])[1] if opened else None

    def features_wanted(self, weights: Weights, *, draft: bool = True) -> tuple[str, ...]:
        """The features to measure before deciding at these weights: none where no gate is open.

        Draft features among them are worth measuring only where `wants_draft` says so.
        """
        tier = self.tier_at(weights, draft=draft)
        if tier is None:
            return ()
        return (*tier.policy.names, *self._full.draft_names) if tier.asks else tier.policy.names

    @property
    def _full(self) -> Tier:
        return next(tier for tier in self.tiers if tier.name == FULL)

    def wants_draft(self, features: Mapping[str, float | None], weights: Weights) -> bool:
        """Whether to make a draft for a question whose other features are these."""
        tier = self.tier_at(weights)
        if tier is None or not tier.asks:
            return tier is not None and bool(tier.draft_names)
        return tier.policy.logits_of(features, (weights.token, weights.latency))[0][2] > 0

    def decide(
        self, features: Mapping[str, float | None], token_weight: float, latency_weight: float = 0.0
    ) -> Decision:
        """The strategy for one question.

        Args:
            features: by name; others than the router reads are ignored. Without draft features the lean
                tier decides; any other missing feature is replaced by its training mean and named.

        Raises:
            InputError: a weight below 0 or not finite; a latency weight for a router that knows no latency.
        """
        weights = Weights(token_weight, latency_weight)
        pair = (weights.token, weights.latency)
        tier, reason = self.tier_at(weights), ""
        found = tier.policy.logits_of(features, pair) if tier and tier.asks else None
        if found and found[0][2] > 0:  # the draft is worth its cost
            tier, found = self._full, None
        if tier and any(not _known(features.get(name)) for name in tier.draft_names):
            reason = f"no draft features, so not the {tier.name} tier"
            tier = self.tier_at(weights, draft=False)
        if tier is None:
            return self._static(weights, reason)
        (rag, cot, *_), missing = found or tier.policy.logits_of(features, pair)
        column = choose_one(rag, cot, self.columns)
        return Decision(
            strategy=STRATEGIES[column],
            need_rag=USES_RAG[column],
            need_cot=USES_COT[column],
            weights=weights,
            tier=tier.name,
            p_rag=_tempered(rag, tier.temperatures[0]),
            p_cot=_tempered(cot, tier.temperatures[1]),
            features_used=tier.policy.names,
            missing=missing,
            fallback_reason=reason,
        )

    def decide_many(self, features: Floats, names: tuple[str, ...], weights: Weights) -> tuple[Ints, tuple[str, ...]]:
        """[n] columns chosen for n questions with features [n, f], and the tier that decided each."""
        rows = np.arange(len(features))
        columns, tiers = np.full(len(rows), self.static_column(weights)), np.full(len(rows), STATIC, dtype=object)
        read = _Table(features, {name: i for i, name in enumerate(names)}, weights)
        wanted = self.tier_at(weights)
        if wanted and wanted.asks:
            logits = read.logits(wanted, rows)
            asks = logits[:, 2] > 0
            columns[~asks], tiers[~asks] = choose(logits, self.columns)[~asks], wanted.name
            rows, wanted = rows[asks], self._full
        drafted = read.has_all(wanted.draft_names if wanted else (), rows)
        for part, tier in ((rows[drafted], wanted), (rows[~drafted], self.tier_at(weights, draft=False))):
            if tier and len(part):
                columns[part] = choose(read.logits(tier, part), self.columns)
                tiers[part] = tier.name
        return columns, tuple(tiers.tolist())

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


@dataclass(frozen=True, slots=True)
class _Table:
    """Features [n, f] of many questions by name, asked at the same weights."""

    features: Floats
    position: Mapping[str, int]
    weights: Weights

    def logits(self, tier: Tier, rows: Ints) -> Floats:
        """[rows, heads] of a tier; a feature that is not there is missing for every question."""
        missing = np.full(len(rows), np.nan)
        read = [
            self.features[rows, self.position[name]] if name in self.position else missing for name in tier.policy.names
        ]
        asked = np.tile([[self.weights.token, self.weights.latency]], (len(rows), 1))
        return np.asarray(tier.policy.logits(np.stack(read, axis=1), asked), dtype=np.float64)

    def has_all(self, names: tuple[str, ...], rows: Ints) -> Bools:
        """[rows] whether a question has every one of these features."""
        if not all(name in self.position for name in names):
            return np.zeros(len(rows), dtype=bool)
        columns = [self.position[name] for name in names]
        return np.asarray(np.isfinite(self.features[rows][:, columns]).all(axis=1))


def _tempered(logit: float, temperature: float | None) -> float | None:
    return None if temperature is None else 0.5 * (1 + math.tanh(logit / temperature / 2))


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
