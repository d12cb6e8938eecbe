"""One question through probes, decision and pipeline: drafts reused or paid for, weaker results said."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from apportion.core.errors import ArtifactMismatchError, InputError, ServiceError
from apportion.route.answer import answer
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup, require_trained_on
from apportion.route.index.build import build_index
from apportion.route.index.corpus import Passage
from apportion.route.llm.openai import OpenAILLM
from apportion.route.router.price import Price
from apportion.route.router.router import Decision
from apportion.route.router.utility import Scale, Weights
from tests.integration.chat_server import Server, serve

WEIGHTS = Weights(0.2)
UNPRICED = Scale(100.0, None, "rag+cot")
PRICED = Scale(100.0, None, "rag+cot", Price(1.0, 1.0, 4.0))


@dataclass
class FixedRouter:
    """Chooses what it is told to, and reads what it is told to."""

    strategy: str
    wanted: tuple[str, ...] = ("nqc_top1_k10", "question_words", "draft_nll_mean")
    seen: dict[str, float] = field(default_factory=dict)
    drafts: bool = True
    source: dict[str, str | int] = field(default_factory=dict)
    scale: Scale = UNPRICED
    reasons: bool | None = None  # after looking at a retrieved answer; None: it is not looked at

    def features_wanted(self, weights: Weights, *, draft: bool = True) -> tuple[str, ...]:
        return tuple(name for name in self.wanted if draft or not name.startswith("draft_"))

    def wants_draft(self, features: Mapping[str, float], weights: Weights) -> bool:
        return self.drafts

    def decide(self, features: Mapping[str, float], token_weight: float, latency_weight: float) -> Decision:
        self.seen = dict(features)
        lacking = "" if "draft_nll_mean" in features else "no draft features, so not the full tier"
        rag, cot = "rag" in self.strategy, "cot" in self.strategy
        weights = Weights(token_weight, latency_weight)
        missing = tuple(name for name in self.wanted if name not in features)
        look = self.reasons is not None
        return Decision(self.strategy, rag, cot, weights, "full", 0.5, 0.5, self.wanted, missing, lacking, look)

    def decide_after(self, decision: Decision, features: Mapping[str, float]) -> Decision:
        self.seen = dict(features)
        return replace(decision, strategy="rag+cot" if self.reasons else "rag", need_cot=bool(self.reasons), look=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(Server()) as running:
        yield running


@pytest.fixture
def setup(server: Server, tmp_path: Path) -> Iterator[Setup]:
    corpus = [Passage("ch", "Bern", "Capital of Switzerland"), Passage("fr", "Paris", "Capital of France")]
    index = build_index(corpus, tmp_path / "index")
    llm = OpenAILLM(server.url, retries=0, backoff_s=0.001)
    server.calls.clear()
    yield Setup(llm, index, load_prompts(), 1)
    llm.close()


def route(strategy: str, setup: Setup, **settings: object):
    settings.setdefault("source", trained_on(setup))
    return answer("The capital of France", FixedRouter(strategy, **settings), setup, WEIGHTS)  # type: ignore[arg-type]


def trained_on(setup: Setup) -> dict[str, str | int]:
    source = setup.source()
    return {"model": source.model, "corpus": source.corpus, "prompts": source.prompts, "k": source.k}


@pytest.mark.parametrize(("reasons", "strategies"), [(False, ["direct", "rag"]), (True, ["direct", "rag", "rag+cot"])])
def test_after_a_retrieved_answer_it_stops_or_reasons_and_every_call_counts(
    server: Server, setup: Setup, reasons: bool, strategies: list[str]
) -> None:
    router = FixedRouter("rag", source=trained_on(setup), reasons=reasons, scale=PRICED)
    found = answer("The capital of France", router, setup, WEIGHTS)  # type: ignore[arg-type]
    assert [call.strategy for call in found.calls] == strategies
    assert found.strategy == strategies[-1]
    assert [call.purpose for call in found.calls] == (
        ["draft", "look", "answer"] if reasons else ["draft", "look and answer"]
    )
    assert found.tokens == sum(call.prompt_tokens + call.completion_tokens for call in found.calls)
    assert found.price == sum(call.prompt_tokens + 4 * call.completion_tokens for call in found.calls)
    assert {"rag_nll_mean", "rag_in_passages", "rag_abstains", "passages_cover"} <= router.seen.keys()


def test_a_router_that_does_not_say_what_it_learned_from_is_used_and_that_is_said(setup: Setup) -> None:
    found = route("rag", setup, source={"k": 1})
    assert [why for why in found.weaker if "does not record its model, corpus, prompts" in why] != []
    with pytest.raises(ArtifactMismatchError, match="another corpus"):
        route("rag", setup, source={**trained_on(setup), "corpus": "other"})


def test_a_feature_that_this_program_does_not_know_is_missing_and_named(setup: Setup) -> None:
    found = route("rag", setup, wanted=("question_words", "difficulty"))
    assert any("difficulty" in why for why in found.weaker)


def test_a_draft_that_the_router_finds_not_worth_its_cost_is_not_made(server: Server, setup: Setup) -> None:
    found = route("cot", setup, drafts=False)
    assert [call.purpose for call in found.calls] == ["answer"]
    assert len(server.calls) == 1
    assert "draft_nll_mean" not in found.features


def test_a_direct_route_returns_the_draft_and_pays_once(server: Server, setup: Setup) -> None:
    found = route("direct", setup)
    assert (found.text, found.strategy, found.draft_reused) == ("France", "direct", True)
    assert [call.purpose for call in found.calls] == ["draft and answer"]
    assert len(server.calls) == 1
    assert found.weaker == ()
    assert found.passages == ()


@pytest.mark.parametrize("strategy", ["rag", "cot", "rag+cot"])
def test_other_routes_pay_for_the_draft_too(server: Server, setup: Setup, strategy: str) -> None:
    found = route(strategy, setup)
    assert [(call.purpose, call.strategy) for call in found.calls] == [
        ("draft", "direct"),
        ("answer", strategy),
    ]
    assert found.tokens == sum(call.prompt_tokens + call.completion_tokens for call in found.calls)
    assert found.passages == (("fr",) if "rag" in strategy else ())
    assert ("Capital of France" in server.calls[-1]["user"]) == ("rag" in strategy)
    assert {"nqc_top1_k10", "draft_nll_mean", "question_words"} <= found.features.keys()
    assert found.latency_ms >= sum(call.latency_ms for call in found.calls)


def test_no_probe_is_made_where_none_is_wanted(server: Server, setup: Setup) -> None:
    for strategy in ("direct", "rag"):
        found = route(strategy, setup, wanted=())
        assert found.features == {}
        assert [call.purpose for call in found.calls] == ["answer"]
    assert len(server.calls) == 2


def test_without_logprobs_no_draft_is_made_and_it_is_said(server: Server, setup: Setup) -> None:
    server.logprobs = "omit"
    llm = OpenAILLM(server.url, backoff_s=0.001)
    server.calls.clear()
    found = route("direct", replace(setup, llm=llm))
    llm.close()
    assert len(server.calls) == 1
    assert not found.draft_reused
    assert "no draft probe: the server answers without them" in found.weaker
    assert any("not the full tier" in reason for reason in found.weaker)


def test_a_draft_that_lacks_logprobs_once_is_said_too(server: Server, setup: Setup) -> None:
    server.logprobs = "omit"  # after the start-up probe found them
    found = route("cot", setup)
    assert any("came back without log-probabilities" in reason for reason in found.weaker)


def test_a_question_longer_than_the_context_says_what_was_cut(server: Server, setup: Setup) -> None:
    server.context = 60
    found = answer("word " * 100 + "France", FixedRouter("direct", source=trained_on(setup)), setup, WEIGHTS)  # type: ignore[arg-type]
    assert [reason for reason in found.weaker if "prompt was cut by about" in reason] != []
    assert found.text == "France"


def test_bad_questions_and_failing_servers(server: Server, setup: Setup) -> None:
    with pytest.raises(InputError, match="question: holds half a character"):
        answer("who \udcff", FixedRouter("direct"), setup, WEIGHTS)  # type: ignore[arg-type]
    for question in ("", "  ", "x" * 100_001):
        with pytest.raises(InputError, match="question: has"):
            answer(question, FixedRouter("direct"), setup, WEIGHTS)  # type: ignore[arg-type]
    server.mode = lambda number: "500"
    with pytest.raises(ServiceError, match="HTTP 500"):
        route("direct", setup)


def test_weights_below_zero_are_refused() -> None:
    with pytest.raises(InputError, match="expected a finite number from 0"):
        Weights(-0.1)


def test_a_router_trained_on_something_else_is_refused(setup: Setup) -> None:
    source = setup.source()
    trained = {"model": source.model, "corpus": source.corpus, "prompts": source.prompts, "k": source.k}
    assert require_trained_on(trained, setup) == ()
    assert require_trained_on({**trained, "prompts": "", "k": 0}, setup) == ("prompts", "k")
    with pytest.raises(ArtifactMismatchError, match="another model, prompts"):
        require_trained_on({**trained, "model": "other", "prompts": "p"}, setup)
