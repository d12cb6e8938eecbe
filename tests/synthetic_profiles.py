"""Profiles whose best routes are known: every question needs facts, reasoning, both or neither.

A question is answered by every strategy that covers its needs; features say how much is known of the needs.
"""

import numpy as np

from apportion.core.seeds import stream
from apportion.route.ask.strategy import DIRECT, USES_COT, USES_RAG
from apportion.route.profile.profile import Floats, Profile

TOKENS = np.array([30.0, 320.0, 130.0, 450.0])
LATENCY_MS = np.array([20.0, 60.0, 200.0, 260.0])
NAMES = ("nqc_top1_k10", "score_top", "question_words", "draft_nll_mean", "draft_nll_max")


def needs_profile(n: int, seed: int = 0, *, signal: float = 1.0, noise: float = 0.0, latency: bool = True) -> Profile:
    """A profile of n questions.

    Args:
        signal: 1: features reveal both needs; 0: features are noise.
        noise: probability that an outcome is flipped, which no router can predict.
    """
    rng = stream(seed, "needs_profile")
    latent = rng.normal(size=(n, 2))
    need_rag, need_cot = latent[:, 0] > 0, latent[:, 1] > 0.3
    covered = (np.array(USES_RAG) | ~need_rag[:, None]) & (np.array(USES_COT) | ~need_cot[:, None])
    flipped = rng.random((n, 4)) < noise
    quality = (covered ^ flipped).astype(float)
    mixed = rng.normal(size=(n, len(NAMES)))
    loads = np.array([[1.0, 0.5, 0.0, 1.0, 0.3], [0.0, -0.5, 1.0, 0.6, 1.0]])
    features = signal * (latent @ loads) + (1 - signal) * mixed
    return _profile(quality, features, seed, latency=latency, families=np.where(need_cot, "sums", "facts"))


def either_profile(n: int, seed: int = 0) -> Profile:
    """Half the questions need exactly one of retrieval and reasoning, and the features say which half.

    Where either helps, doing both confuses: the best route is an exclusive or, which no single head sees.
    """
    rng = stream(seed, "either_profile")
    features = rng.normal(size=(n, len(NAMES)))
    hard, fact = features[:, 0] > 0, features[:, 1] > 0
    quality = np.stack([~hard, hard & fact, hard & ~fact, np.zeros(n, bool)], axis=1).astype(float)
    return _profile(quality, features, seed, latency=True, families=np.where(hard, "hard", "easy"))


def draft_profile(n: int, seed: int = 0) -> Profile:
    """Half the questions are sums that need reasoning, as their length says; the rest are facts of which only
    the draft tells whether they are known. Drafting a sum is waste, and Direct costs as much as a sum."""
    rng = stream(seed, "draft_profile")
    sums, known = rng.random(n) < 0.5, rng.random(n) < 0.5
    fact = ~sums & known
    quality = np.stack([fact, ~sums, sums | fact, np.ones(n, bool)], axis=1).astype(float)
    features = rng.normal(size=(n, len(NAMES)))
    features[:, 2] = np.where(sums, 1.0, -1.0) + 0.1 * features[:, 2]
    features[:, 3] = np.where(known, -1.0, 1.0) + 0.1 * features[:, 3]
    profile = _profile(quality, features, seed, latency=False, families=np.where(sums, "sums", "facts"))
    profile.tokens[:, DIRECT] = 100 + profile.tokens[:, DIRECT]
    return profile


def _profile(quality: Floats, features: Floats, seed: int, *, latency: bool, families: np.ndarray) -> Profile:
    n, rng = len(quality), stream(seed, "costs")
    tokens = np.round(TOKENS * rng.uniform(0.8, 1.2, size=(n, 4)))
    times = LATENCY_MS * rng.uniform(0.8, 1.2, size=(n, 4))
    return Profile(
        dataset=tuple(str(name) for name in families),
        ids=tuple(str(i) for i in range(n)),
        question=tuple(f"question {i} of {seed}" for i in range(n)),
        quality=quality,
        em=quality,
        tokens=tokens,
        latency_ms=times if latency else np.full((n, 4), np.nan),
        retrieval_ms=np.full(n, 2.0) if latency else np.full(n, np.nan),
        features=features,
        feature_names=NAMES,
    )


def look_profile(n: int, seed: int = 0) -> Profile:
    """Only the retrieved answer tells whether reasoning is needed: RAG is right where the passages hold its answer,
    as they do for three in five questions, RAG+CoT is right always and costs three times as much."""
    rng = stream(seed, "look_profile")
    held = rng.random(n) < 0.6
    quality = np.stack([np.zeros(n), held, np.zeros(n), np.ones(n)], axis=1).astype(float)
    profile = _profile(quality, rng.normal(size=(n, len(NAMES))), seed, latency=True, families=np.full(n, "facts"))
    profile.tokens[:, 3] = 3 * profile.tokens[:, 1]
    answers = np.stack([held.astype(float), rng.normal(size=n)], axis=1)
    return profile.with_features(("rag_in_passages", "rag_nll_mean"), answers)
