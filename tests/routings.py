"""Routings whose decisions are known: routers made by hand, a tiny index, the shipped prompts."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.index.build import build_index
from apportion.route.index.corpus import Passage
from apportion.route.router.decider import Constant
from apportion.route.router.gate import Gate
from apportion.route.router.policy import Layers, Policy
from apportion.route.router.reader import Reader
from apportion.route.router.router import FULL, Router, Tier
from apportion.route.router.second import Second
from apportion.route.router.utility import Scale
from apportion.serve import Routing

PASSAGES = (
    Passage("bern", "Bern", "Bern was founded in 1191 by Berthold of Zähringen."),
    Passage("basel", "Basel", "Basel lies on the Rhine and has a zoo founded in 1874."),
    Passage("tour", "Tour de France", "The Tour of 2023 was won by Jonas Vingegaard."),
)


def static_router(strategy: str) -> Router:
    """A router without a policy, whose best static pipeline is this one at any weights near 0.1."""
    quality = np.array([1.0 if name == strategy else 0.0 for name in STRATEGIES])
    means = np.stack([quality, np.array([0.1, 0.5, 0.4, 1.0]), np.array([0.1, 0.2, 0.8, 1.0])])
    return Router(
        tiers=(),
        columns=(0, 1, 2, 3),
        means=means,
        scale=Scale(500.0, 800.0, "rag+cot"),
        has_latency=True,
        source={},
        trained_on=np.zeros(0, np.uint64),
    )


def knowing_router() -> Router:
    """A router that retrieves where the draft is unsure (mean loss over 0.5 nats) and reasons over two numbers or more.

    Without a draft its lean tier always retrieves.
    """
    full = Tier(FULL, _policy(("hits", "question_numbers", "draft_nll_mean")), _open_gate(1.0), (1.0, 1.0))
    lean = Tier("lean", _policy(("hits", "question_numbers")), _open_gate(0.5), (1.0, 1.0))
    return replace(static_router("direct"), tiers=(full, lean))


def looking_router() -> Router:
    """A router that always retrieves, looks at the answer, and reasons where that is unsure (over 0.5 nats a token)."""
    tier = Tier(FULL, Constant(1, (0, 1, 2, 3)), _open_gate(1.0), (None, None), looks=True)
    reader = Reader(("rag_nll_mean",), np.array([0.5]), np.array([0.25]))
    second = Second(reader, np.zeros(3), np.array([[1.0], [0.0], [0.0]]))
    return replace(static_router("direct"), tiers=(tier,), second=second)


def _policy(names: tuple[str, ...]) -> Policy:
    """Two hidden units: one for the draft's loss (always on without it), one for the numbers."""
    features, hidden = len(names), 2
    w1 = np.zeros((1, features + 6, hidden), np.float32)
    w1[0, 1, 1] = 4.0
    b1 = np.zeros((1, 1, hidden), np.float32)
    if "draft_nll_mean" in names:
        w1[0, 2, 0] = 4.0
    else:
        b1[0, 0, 0] = 4.0
    w2 = 3 * np.eye(hidden, dtype=np.float32)[None]
    w3 = np.zeros((1, hidden, 6), np.float32)
    w3[0, 0, 0] = w3[0, 1, 1] = 4.0
    mean = np.array([0.0, 1.5, 0.5][:features])
    zeros = np.zeros((1, 1, hidden), np.float32)
    layers = Layers(w1, b1, w2, zeros, w3, np.zeros((1, 1, 6), np.float32))
    reader = Reader(names, mean, np.full(features, 0.25))
    return Policy(reader, (0, 1, 2, 3), static_router("direct").means, layers)


def _open_gate(gain: float) -> Gate:
    return Gate((0.0,), (0.0,), np.array([[gain]]), np.array([[0.1]]), 1.0)


def routing(folder: Path, router: Router) -> Routing:
    """A router over three passages."""
    return Routing(router, build_index(PASSAGES, folder / "index"), load_prompts(), k=2)
