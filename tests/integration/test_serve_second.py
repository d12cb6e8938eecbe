"""A router with a second decision, from profile to server: what is served is what `evaluate-router` judges by.

In this world only the retrieved answer tells whether it must be reasoned about: a hall's builder is in its passage,
but for half of the halls the model reads it right only when it reasons, and is unsure of what it says without.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from apportion.route.ask.pipelines import asked_as
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.contest import Routed, play
from apportion.route.index import Passage, build_index
from apportion.route.llm.openai import OpenAILLM
from apportion.route.profile.file import read_profile
from apportion.route.profile.profile import Profile
from apportion.route.profile.questions import Question
from apportion.route.profile.run import run_profile
from apportion.route.router import Router, Weights, train_router
from apportion.route.router.file import save_router
from apportion.route.router.price import Price
from apportion.serve import Routing
from apportion.serve.relearning import utilities
from apportion.serve.routing_files import open_routing
from tests.integration.serving import serving
from tests.integration.upstream_stub import Json, Stub, upstream
from tests.trained_routers import QUICK, preferring

HALLS = 48
K = 2
PRICE = Price(input=0.5, cached=0.1, output=2.0)
UNKNOWN = 4  # questions that no passage knows a word of


def _is_hard(asked: str) -> bool:
    """Whether what is before the model must be reasoned about: some of the halls, and what no passage knows."""
    hall = _hall(asked)
    return hall is None or ("[1]" in asked and (hall * 7 % 5 < 2 or hall % 11 == 3))


def _hall(asked: str) -> int | None:
    found = re.findall(r"Who built Hall (\d+)", asked)
    return int(found[-1]) if found else None


def _reply(messages: list[Json]) -> str:
    """What the model of this world says."""
    asked = messages[-1]["content"]
    reasons, hall = "Reason first" in asked, _hall(asked)
    right = "Nobody" if hall is None else f"Mason {hall}" if "[1]" in asked else "Anybody"
    said = right if reasons or not _is_hard(asked) else "Somebody"
    return f"Let me see who it was, one word after the other.\nAnswer: {said}" if reasons else said


def _logprob(messages: list[Json]) -> float:
    return -2.0 if _is_hard(messages[-1]["content"]) else -0.1


@dataclass(frozen=True)
class World:
    stub: Stub
    profile: Profile
    known: Routing
    questions: tuple[Question, ...]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    halls = [Passage(f"h{n}", f"Hall {n}", f"Hall {n} was built by Mason {n}.") for n in range(HALLS)]
    retriever = build_index(halls, folder / "index")
    asked = [Question(f"q{n}", "halls", f"Who built Hall {n}?", (f"Mason {n}",)) for n in range(HALLS)]
    asked += [Question(f"u{n}", "halls", f"Qwertz asdf yxcv{n}?", ("Nobody",)) for n in range(UNKNOWN)]
    with upstream() as stub:
        stub.reply, stub.logprobs = _reply, _logprob
        llm = OpenAILLM(stub.url, concurrency=4)
        run_profile(asked, Setup(llm, retriever, load_prompts(), K), folder / "profile.parquet", unloaded=0)
        llm.close()
        profile = _timed_by_tokens(read_profile(folder / "profile.parquet"))
        save_router(folder / "router", train_router(profile, QUICK, stages=2).router, {})
        known = open_routing(folder / "router", folder / "index", None, None, "server:tiny")
        yield World(stub, profile, known, tuple(asked))


def _timed_by_tokens(profile: Profile) -> Profile:
    """The same router is learned on every machine: latencies under a test run's own load would choose another."""
    return replace(profile, latency_ms=profile.tokens / 10, retrieval_ms=np.ones(profile.n))


def _served(world: World, router: Router, weights: Weights) -> list[dict[str, Any]]:
    extra = {"apportion": {"token_weight": weights.token}}
    found = []
    with serving(world.stub, replace(world.known, router=router)) as client:
        for question in world.questions:
            messages: Any = [{"role": "user", "content": question.question}]
            answer = client.chat.completions.create(model="auto", messages=messages, extra_body=extra)
            found.append(answer.model_dump())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["", "full+look", "lean+look", "always_rag+look"])
@pytest.mark.parametrize("token_weight", [0.1, 0.6])
def test_what_is_served_is_what_was_judged(world: World, tier: str, token_weight: float) -> None:
    router = preferring(world.known.router, tier) if tier else world.known.router
    router = replace(router, scale=replace(router.scale, price=PRICE))
    weights = Weights(token_weight)
    assert (chosen := router.tier_at(weights)) is not None
    assert chosen.looks
    choice = Routed(router).choose(world.profile, weights)
    judged = play(world.profile, choice, PRICE)
    known = world.profile.features[:, world.profile.feature_names.index("hits")] > 0
    for row, served in enumerate(_served(world, router, weights)):
        found, where = served["apportion"], (row, world.questions[row].question)
        route = STRATEGIES[choice.columns[row]]
        assert found["route"] == (route if known[row] else asked_as(route, ())), where
        assert found["tier"] == choice.tiers[row], where
        assert float(found["answer"] == world.questions[row].answers[0]) == judged.quality[row], where
        spent = served["usage"]["total_tokens"]
        if known[row]:
            assert spent == judged.tokens[row], where
            assert served["usage"]["apportion"]["price"] == pytest.approx(judged.charged[row]), where
        else:  # without a passage a draft and the retrieved answer are one call, which the profile counts twice
            assert spent <= judged.tokens[row], where
    taken = {STRATEGIES[column] for column in choice.columns[known]}
    assert taken == {"rag", "rag+cot"}, "the second decision was of use"
    assert {STRATEGIES[column] for column in choice.columns[~known]} == {"rag+cot"}, "likewise without a passage"


@pytest.mark.slow
def test_refit_counts_both_decisions(world: World) -> None:
    profile, weights = world.profile, Weights(0.1)
    router = preferring(world.known.router, "always_rag+look")
    choice = Routed(router).choose(profile, weights)
    rows = zip(profile.ids, profile.features.tolist(), choice.columns, strict=True)
    records = [
        {"id": name, "features": dict(zip(profile.feature_names, features, strict=True)), "route": STRATEGIES[column],
         "score": 1.0, "prompt_tokens": 50, "completion_tokens": 0, "wasted_tokens": 0, "measured": True,
         "question": None, "token_weight": weights.token, "latency_weight": 0.0}
        for name, features, column in rows
    ]  # fmt: skip
    gained, routes = utilities(router, records, profile, router.scale, timed=router.has_latency)
    assert routes == [STRATEGIES[column] for column in choice.columns]
    of = {name: [gain for gain, route in zip(gained, routes, strict=True) if route == name] for name in set(routes)}
    assert max(of["rag+cot"]) < min(of["rag"]), "an answer that was looked at and thrown away is paid for"
