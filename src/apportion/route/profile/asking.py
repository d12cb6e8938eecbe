"""One batch of questions under one strategy -> records: what came back, what it cost, how it was read."""

import time
from dataclasses import dataclass
from typing import Any

from apportion.core.artifact import plain
from apportion.core.errors import ServiceError
from apportion.route.ask.answered import Answered, complete
from apportion.route.ask.evidence import JUDGED, answer_features
from apportion.route.ask.pipelines import asked_as, build_request, uses_passages
from apportion.route.ask.probes import features_of_hits, question_features
from apportion.route.ask.setup import Setup
from apportion.route.index.corpus import Passage
from apportion.route.llm.protocol import Completion, Request
from apportion.route.profile.questions import Question
from apportion.route.profile.records import ALONE, Record, question_key

Batch = list[tuple[Question, str]]  # one strategy in each batch


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question as it is sent."""

    question: Question
    strategy: str
    passages: tuple[Passage, ...]
    search_ms: float
    request: Request

    @property
    def turn(self) -> tuple[str, str, Request]:
        """As `complete` takes it."""
        return asked_as(self.strategy, self.passages), self.question.question, self.request


def probe(question: Question, setup: Setup) -> Record:
    """The record of one search: its features and how long it took."""
    start = time.perf_counter()
    hits = setup.retriever.search(question.question, setup.k)
    retrieval_ms = (time.perf_counter() - start) * 1000
    features = {**features_of_hits(hits, question.question), **question_features(question.question)}
    return {"question": question_key(question), "strategy": "", "features": features, "retrieval_ms": retrieval_ms}


def ask(batch: Batch, setup: Setup) -> list[Record]:
    """One call for a batch of one strategy, and one for all that had no answer in it; a failed call is a record with
    an error for each of its rows."""
    asked = [_prepare(question, strategy, setup) for question, strategy in batch]
    try:
        answered = complete(setup.llm, setup.prompts, [one.turn for one in asked])
    except ServiceError as error:
        return [{"question": question_key(one), "strategy": name, "error": error.problem} for one, name in batch]
    return [_record(one, found, setup) for one, found in zip(asked, answered, strict=True)]


def ask_alone(question: Question, strategy: str, setup: Setup) -> Record:
    """The record of one answer while nothing else runs, for its latency only.

    Raises:
        ServiceError: the call failed.
    """
    asked = _prepare(question, strategy, setup)
    answered = complete(setup.llm, setup.prompts, [asked.turn])[0]
    completion = answered.total
    return {
        "question": question_key(question),
        "strategy": ALONE + strategy,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "calls": 1 if answered.second is None else 2,
        "search_ms": asked.search_ms,
        "latency_ms": completion.latency_ms + asked.search_ms,
    }


def _prepare(question: Question, strategy: str, setup: Setup) -> _Asked:
    start = time.perf_counter()
    found = setup.retriever.search(question.question, setup.k).passages  # a draft is compared with them too
    search_ms = (time.perf_counter() - start) * 1000 if uses_passages(strategy) else 0.0
    logprobs = strategy in JUDGED and setup.llm.has_logprobs
    request = build_request(setup.prompts, strategy, question.question, found, logprobs=logprobs)
    return _Asked(question, strategy, found, search_ms, request)


def _record(asked: _Asked, answered: Answered, setup: Setup) -> Record:
    completion, extracted = answered.total, answered.extracted
    question, shown = asked.question, asked.passages if uses_passages(asked.strategy) else ()
    really = asked_as(asked.strategy, asked.passages)
    judged = JUDGED.get(asked.strategy)
    features = answer_features(judged, extracted.answer, question.question, asked.passages) if judged else {}
    return {
        "question": question_key(question),
        "strategy": asked.strategy,
        "answer": extracted.answer,
        "rule": extracted.rule,
        "kind": setup.prompts.of(really, question.question).kind,
        "asked_as": really,
        "completion": completion.text,
        "again": None if answered.second is None else answered.second.text,
        "unserved": answered.unserved,
        "thought_chars": len(completion.thinking_text),
        "finish": completion.finish,
        "passages": [one.id for one in shown],
        "prompt_tokens": completion.prompt_tokens,
        "cached_tokens": completion.cached_tokens,
        "completion_tokens": completion.completion_tokens,
        "latency_ms": completion.latency_ms + asked.search_ms,
        "search_ms": asked.search_ms,
        **_likelihood(completion),
        "cut": completion.cut_prompt_tokens,
        "attempts": completion.attempts,
        "tokens_measured": completion.tokens_measured,
        "weaker": list(completion.weaker),
        "features": features,
    }


def _likelihood(completion: Completion) -> dict[str, Any]:
    return {"logprobs": plain(completion.token_logprobs), "margin": completion.margin}
