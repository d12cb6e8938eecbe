"""A question -> an answer by the strategy that the router chooses; when that is Direct, the draft is it."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from apportion.core.errors import InputError
from apportion.core.lines import HALF, holds_half
from apportion.route.ask.answered import Answered, complete
from apportion.route.ask.evidence import answer_features
from apportion.route.ask.features import is_draft, needs_of
from apportion.route.ask.kinds import MAX_QUESTION_CHARS
from apportion.route.ask.pipelines import asked_as, build_request, uses_passages
from apportion.route.ask.probes import draft_features, features_of_hits, question_features, retrieved_features
from apportion.route.ask.setup import Setup, require_trained_on
from apportion.route.index.bm25 import Hits
from apportion.route.llm.protocol import Completion
from apportion.route.router import Decision, Router, Weights

Purpose = Literal["draft", "look", "answer", "draft and answer", "look and answer", "asked again"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model.

    Attributes:
        purpose: a draft that was a probe, a retrieved answer that was looked at, the answer, or two of these;
            "asked again" for the turn that asks for an answer after reasoning that ended without one.
    """

    purpose: Purpose
    strategy: str
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, how it came about and what it cost.

    Attributes:
        text: the answer. completion: all that the model showed for it; where it was asked again, both turns.
        decision: the last one; where a retrieved answer was looked at, the second.
        draft_reused: the draft was the answer, so the probe cost nothing.
        features: what was measured for the decisions; nothing where no policy decides at these weights.
        passages: ids of the passages in the prompt, best first.
        calls: every call made. tokens: prompt and completion tokens of all of them.
        price: millionths of the currency of the router's price; None for a router without one. Input that the
            server had cached is charged as input, since its reply does not say.
        latency_ms: from the question to the answer, searches and probes included.
        weaker: all that made this a weaker result than the router could give; empty when nothing did.
    """

    text: str
    strategy: str
    decision: Decision
    draft_reused: bool
    features: Mapping[str, float]
    passages: tuple[str, ...]
    calls: tuple[Call, ...]
    tokens: int
    price: float | None
    latency_ms: float
    weaker: tuple[str, ...]
    completion: str


@dataclass(slots=True)
class _Work:
    """One question being answered: what was found and made so far, each at most once."""

    question: str
    setup: Setup
    hits: Hits | None = None
    made: dict[str, Answered] = field(default_factory=dict)
    drafted: bool = False

    def search(self) -> Hits:
        if self.hits is None:
            self.hits = self.setup.retriever.search(self.question, self.setup.k)
        return self.hits

    def complete(self, strategy: str, *, logprobs: bool = False) -> Answered:
        """What a strategy answers; without a passage RAG is asked as Direct."""
        if strategy not in self.made:
            passages = self.search().passages if uses_passages(strategy) else ()
            wanted = logprobs and self.setup.llm.has_logprobs
            prompts, really = self.setup.prompts, asked_as(strategy, passages)
            request = build_request(prompts, strategy, self.question, passages, logprobs=wanted)
            self.made[strategy] = complete(self.setup.llm, prompts, [(really, self.question, request)])[0]
        return self.made[strategy]

    def said(self, prefix: str, strategy: str) -> dict[str, float]:
        """Features of what an answer says."""
        passages = self.hits.passages if self.hits else ()
        return answer_features(prefix, self.made[strategy].extracted.answer, self.question, passages)


def answer(question: str, router: Router, setup: Setup, weights: Weights) -> Answer:
    """Measure the features that the router wants, decide, and answer.

    Without log-probabilities a tier without draft features decides, no draft is made, and `weaker` says so. Where
    the router looks at the retrieved answer, it decides after it whether to reason on the same passages.

    Args:
        question: 1 to 100,000 characters.
        router: of `load_router` or `train_router`, learned from what this setup answers.
        setup: model, retriever, prompts and number of passages.
        weights: what the costs of one always-on answer are worth, in points of quality.

    Returns:
        The answer with its costs; `weaker` holds what was missing, and what the router's training did not
        record and so could not be compared with this setup.

    Raises:
        InputError: an empty or too long question. ServiceError: the model's server failed.
        ArtifactMismatchError: the router learned from another model, corpus, prompts or k.

    Cost: one to three calls of the model, a further short one where reasoning ended without an answer; at most one
        search.

    Source: X-Router (METHODS section 2); the second decision after RASER (METHODS section 3).

    >>> from apportion.route.router import load_router
    >>> answer("", None, None, Weights(0.3))
    Traceback (most recent call last):
    apportion.core.errors.InputError: question: has 0 characters, expected 1 to 100000
      remedy: ask in words
    """
    start = time.perf_counter()
    if not question.strip() or len(question) > MAX_QUESTION_CHARS:
        raise InputError(
            f"question: has {len(question)} characters, expected 1 to {MAX_QUESTION_CHARS}", "ask in words"
        )
    if holds_half(question):
        raise InputError(f"question: {HALF}", "give it as UTF-8")
    unknown = require_trained_on(router.source, setup)
    work = _Work(question, setup)
    features = _first_features(work, router, weights)
    decision = router.decide(features, weights.token, weights.latency)
    looked = decision.look
    if looked:
        retrieved = work.complete("rag", logprobs=True)
        features |= _second_features(work, retrieved.first)
        decision = router.decide_after(decision, features)
    final = work.complete(decision.strategy)
    calls = _calls(work, decision.strategy, looked=looked)
    return Answer(
        text=final.extracted.answer,
        strategy=decision.strategy,
        decision=decision,
        draft_reused=any(call.purpose == "draft and answer" for call in calls),
        features={name: features[name] for name in decision.features_used if name in features},
        passages=tuple(one.id for one in work.search().passages) if uses_passages(decision.strategy) else (),
        calls=calls,
        tokens=sum(call.prompt_tokens + call.completion_tokens for call in calls),
        price=_price(router, calls),
        latency_ms=(time.perf_counter() - start) * 1000,
        weaker=_weaker(work, decision, unknown),
        completion=final.shown,
    )


def _first_features(work: _Work, router: Router, weights: Weights) -> dict[str, float]:
    """What the first decision reads, measured as cheaply as it allows: the draft only where it is wanted."""
    wanted = router.features_wanted(weights, draft=work.setup.llm.has_logprobs)
    if not wanted:
        return {}
    features = question_features(work.question)
    if needs_of(name for name in wanted if not is_draft(name)).search:
        features |= features_of_hits(work.search(), work.question)
    if any(map(is_draft, wanted)) and router.wants_draft(features, weights):
        work.drafted = True
        if needs_of(wanted).search:
            work.search()
        draft = work.complete("direct", logprobs=True).first
        features |= draft_features(draft.token_logprobs, draft.margin) | work.said("draft", "direct")
    return features


def _second_features(work: _Work, retrieved: Completion) -> dict[str, float]:
    """What the second decision reads, all of it measured by now."""
    found = question_features(work.question) | features_of_hits(work.search(), work.question)
    return found | retrieved_features(retrieved.token_logprobs, retrieved.margin) | work.said("rag", "rag")


def _calls(work: _Work, strategy: str, *, looked: bool) -> tuple[Call, ...]:
    """Every call in the order it was made; the last gave the answer."""
    found = []
    for name, answered in work.made.items():
        purpose: Purpose = "draft" if name == "direct" else "look"
        if name == strategy:
            purpose = "answer"
            if name == "direct" and work.drafted:
                purpose = "draft and answer"
            elif name == "rag" and looked:
                purpose = "look and answer"
        found.append(_call(purpose, name, answered.first))
        if answered.second is not None:
            found.append(_call("asked again", name, answered.second))
    return tuple(found)


def _call(purpose: Purpose, strategy: str, one: Completion) -> Call:
    return Call(purpose, strategy, one.prompt_tokens, one.completion_tokens, one.latency_ms)


def _price(router: Router, calls: tuple[Call, ...]) -> float | None:
    price = router.scale.price
    return None if price is None else math.fsum(price.of(one.prompt_tokens, one.completion_tokens) for one in calls)


def _weaker(work: _Work, decision: Decision, unknown: tuple[str, ...]) -> tuple[str, ...]:
    llm, said = work.setup.llm, list[str]()
    draft, final = work.made.get("direct"), work.made[decision.strategy]
    ended = final.total
    if unknown:
        said.append(f"the router does not record its {', '.join(unknown)}, so that was not compared with this setup")
    if not llm.has_logprobs:
        said.append(f"no draft probe: {llm.logprobs_reason}")
    elif work.drafted and draft is not None and not draft.first.token_logprobs:
        said.append("no draft features: the draft came back without log-probabilities or without tokens")
    if decision.fallback_reason:
        said.append(decision.fallback_reason)
    if decision.missing:
        said.append(f"features not measured, read as their training mean: {', '.join(decision.missing)}")
    names = {"direct": "draft", "rag": "retrieved answer"} | {decision.strategy: "answer"}
    for strategy, one in work.made.items():
        if cut := one.total.cut_prompt_tokens:
            said.append(f"the {names[strategy]}'s prompt was cut by about {cut} tokens to the context")
    if ended.finish == "length":
        said.append("the reasoning was ended by max_tokens" if final.second else "the answer was ended by max_tokens")
    if final.second is not None:
        said.append("the reasoning ended without an answer, which was asked for once more")
        said += ["the answer was ended by max_tokens"] if final.second.finish == "length" else []
    said += final.weaker
    if not final.extracted.matched:
        said.append(f"no rule found an answer in the text ({final.extracted.rule})")
    if not ended.tokens_measured:
        said.append("token counts are estimates, since the server reports none")
    return tuple(said)
