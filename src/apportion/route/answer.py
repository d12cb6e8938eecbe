"""A question -> an answer by the strategy that the router chooses; when that is Direct, the draft is it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from apportion.core.errors import InputError
from apportion.route.ask.extraction import extract
from apportion.route.ask.features import group_of
from apportion.route.ask.pipelines import build_request, uses_passages
from apportion.route.ask.probes import draft_features, features_of_hits, question_features
from apportion.route.ask.setup import Setup
from apportion.route.index.bm25 import Hits
from apportion.route.llm.protocol import Completion
from apportion.route.profile.questions import MAX_QUESTION_CHARS
from apportion.route.router.router import Decision, Router
from apportion.route.router.utility import Weights


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model: the draft that was a probe, or the answer (which the draft may be)."""

    purpose: Literal["draft", "answer", "draft and answer"]
    strategy: str
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, how it came about and what it cost.

    Attributes:
        text: the answer. completion: all that the model showed for it.
        draft_reused: the draft was the answer, so the probe cost nothing.
        features: what was measured for the decision; nothing where no policy decides at these weights.
        passages: ids of the passages in the prompt, best first.
        calls: every call made. tokens: prompt and completion tokens of all of them.
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
    latency_ms: float
    weaker: tuple[str, ...]
    completion: str


def answer(question: str, router: Router, setup: Setup, weights: Weights) -> Answer:
    """Measure the features that the router wants, decide, and answer.

    Without log-probabilities the router's tier without draft features decides, no draft is made, and
    `weaker` says so.

    Raises:
        InputError: an empty or too long question. ServiceError: the model's server failed.
    """
    start = time.perf_counter()
    if not question.strip() or len(question) > MAX_QUESTION_CHARS:
        raise InputError(
            f"question: has {len(question)} characters, expected 1 to {MAX_QUESTION_CHARS}", "ask in words"
        )
    wanted = {group_of(name) for name in router.features_wanted(weights, draft=setup.llm.has_logprobs)}
    hits = setup.retriever.search(question, setup.k) if "retrieval" in wanted else None
    features = _features(question, hits) if wanted else {}
    asked = "draft" in wanted and router.wants_draft(features, weights)
    draft = _complete(question, "direct", None, setup, logprobs=True) if asked else None
    features |= draft_features(draft.token_logprobs) if draft else {}
    decision = router.decide(features, weights.token, weights.latency)
    strategy = decision.strategy
    if uses_passages(strategy) and hits is None:
        hits = setup.retriever.search(question, setup.k)
    reused = strategy == "direct" and draft is not None
    final = draft if draft is not None and reused else _complete(question, strategy, hits, setup)
    calls = _calls(draft, final, strategy, reused)
    extracted = extract(setup.prompts.of(strategy, question), final)
    return Answer(
        text=extracted.answer,
        strategy=strategy,
        decision=decision,
        draft_reused=reused,
        features=features,
        passages=tuple(one.id for one in hits.passages) if hits and uses_passages(strategy) else (),
        calls=calls,
        tokens=sum(call.prompt_tokens + call.completion_tokens for call in calls),
        latency_ms=(time.perf_counter() - start) * 1000,
        weaker=_weaker(setup, decision, final, draft, matched=extracted.matched),
        completion=final.text,
    )


def _complete(question: str, strategy: str, hits: Hits | None, setup: Setup, *, logprobs: bool = False) -> Completion:
    passages = hits.passages if hits else ()
    request = build_request(setup.prompts, strategy, question, passages, logprobs=logprobs)
    return setup.llm.complete([request])[0]


def _features(question: str, hits: Hits | None) -> dict[str, float]:
    return {
        **question_features(question),
        **(features_of_hits(hits) if hits else {}),
    }


def _calls(draft: Completion | None, final: Completion, strategy: str, reused: bool) -> tuple[Call, ...]:
    made: list[tuple[Literal["draft", "answer", "draft and answer"], str, Completion]] = []
    if draft is not None and not reused:
        made.append(("draft", "direct", draft))
    made.append(("draft and answer" if reused else "answer", strategy, final))
    return tuple(
        Call(purpose, name, one.prompt_tokens, one.completion_tokens, one.latency_ms) for purpose, name, one in made
    )


def _weaker(
    setup: Setup, decision: Decision, final: Completion, draft: Completion | None, *, matched: bool
) -> tuple[str, ...]:
    said = []
    if not setup.llm.has_logprobs:
        said.append(f"no draft probe: {setup.llm.logprobs_reason}")
    elif draft is not None and not draft.token_logprobs:
        said.append("no draft features: the draft came back without log-probabilities or without tokens")
    if decision.fallback_reason:
        said.append(decision.fallback_reason)
    if decision.missing:
        said.append(f"features not measured, read as their training mean: {', '.join(decision.missing)}")
    for name, one in (("draft", draft), ("answer", final)):
        if one is not None and one.cut_prompt_tokens and not (name == "draft" and one is final):
            said.append(f"the {name}'s prompt was cut by about {one.cut_prompt_tokens} tokens to the context")
    if final.finish == "length":
        said.append("the answer was ended by max_tokens")
    if not matched:
        said.append("the prompt's answer pattern did not match, so the last line was taken")
    if not final.tokens_measured:
        said.append("token counts are estimates, since the server reports none")
    return tuple(said)
