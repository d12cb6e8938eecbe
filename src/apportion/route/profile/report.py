"""What is said of a finished profile: per pipeline, and what made it weaker than it could be."""

from collections.abc import Sequence
from dataclasses import dataclass

from apportion.route.ask.extraction import FAILED
from apportion.route.ask.setup import Setup
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.preflight import Preflight
from apportion.route.profile.profile import Outcome
from apportion.route.profile.questions import Question
from apportion.route.profile.records import Measured, question_key

SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True)
class PipelineReport:
    """How one pipeline went, over the answers that did not fail.

    Attributes:
        quality: mean f1. tokens: mean prompt + completion. latency_ms: mean, as `ProfileReport.latency` says.
        asked_again: reasoning that ended without an answer, which was asked for once more.
        not_extracted: answers in which no rule found one, after that. rules: how many answers each rule found.
        cut: answers ended by max_tokens. prompt_cut: prompts longer than the context.
        no_passage: searches that found nothing, so that the pipeline without passages was asked.
        no_logprobs: answers that came back without log-probabilities although they were asked for.
    """

    answers: int
    quality: float
    tokens: float
    latency_ms: float
    asked_again: int
    not_extracted: int
    rules: dict[str, int]
    cut: int
    prompt_cut: int
    no_passage: int
    no_logprobs: int


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """How a profile went.

    Attributes:
        rows: of the file, four a question. resumed: of these, finished by an earlier run.
        failed: rows with an error. failures: the first few, with question and reason.
        pipelines: by strategy.
        cut_prompts: answers whose prompt was longer than the context. unmatched: answers that no rule found, so
            that the last line was taken, or none. estimated_tokens: rows of a server that reports no usage.
        logprobs: how it is known whether draft features could be measured; without, they are missing.
        latency: what latencies mean here. weaker: settings that the server refused, each once.
        generation: how a model in this process decodes; empty for a server.
        preflight: how the first questions went.
    """

    path: str
    questions: int
    rows: int
    resumed: int
    failed: int
    failures: tuple[str, ...]
    pipelines: dict[str, PipelineReport]
    cut_prompts: int
    unmatched: int
    estimated_tokens: int
    has_logprobs: bool
    logprobs: str
    latency: str
    weaker: tuple[str, ...]
    generation: str
    preflight: Preflight
    seconds: float


def report_on(
    questions: Sequence[Question],
    outcomes: Sequence[Outcome],
    measured: Measured,
    setup: Setup,
    *,
    path: str,
    resumed: int,
    latency: str,
    preflight: Preflight,
    seconds: float,
) -> ProfileReport:
    """Count what happened."""
    records = [measured.records.get((question_key(one), name), {}) for one in questions for name in STRATEGIES]
    failures = [f"{one.dataset}/{one.question_id} {one.strategy}: {one.error}" for one in outcomes if one.error]
    pipelines = {name: _pipeline(name, outcomes, measured.answers(questions, name), setup) for name in STRATEGIES}
    how = getattr(setup.llm, "generation", None)
    return ProfileReport(
        path=path,
        questions=len(questions),
        rows=len(outcomes),
        resumed=resumed,
        failed=len(failures),
        failures=tuple(failures[:SHOWN_FAILURES]),
        pipelines=pipelines,
        cut_prompts=sum(one.prompt_cut for one in pipelines.values()),
        unmatched=sum(one.not_extracted for one in pipelines.values()),
        estimated_tokens=sum(record.get("tokens_measured") is False for record in records),
        has_logprobs=setup.llm.has_logprobs,
        logprobs=setup.llm.logprobs_reason,
        latency=latency,
        weaker=tuple(dict.fromkeys(said for record in records for said in record.get("weaker", ()))),
        generation="" if how is None else str(how),
        preflight=preflight,
        seconds=seconds,
    )


def _pipeline(
    name: str, outcomes: Sequence[Outcome], records: Sequence[dict[str, object]], setup: Setup
) -> PipelineReport:
    rows = [one for one in outcomes if one.strategy == name and one.error is None]
    rules = [str(one.rule) for one in rows]
    asked = name in ("direct", "rag") and setup.llm.has_logprobs
    return PipelineReport(
        answers=len(rows),
        quality=_mean([one.f1 for one in rows]),
        tokens=_mean([(one.prompt_tokens or 0) + (one.completion_tokens or 0) for one in rows]),
        latency_ms=_mean([one.latency_ms for one in rows]),
        asked_again=sum(one.again is not None for one in rows),
        not_extracted=sum(rule in FAILED for rule in rules),
        rules={rule: rules.count(rule) for rule in dict.fromkeys(rules)},
        cut=sum(one.finish == "length" for one in rows),
        prompt_cut=sum(bool(one.cut_tokens) for one in rows),
        no_passage=sum(one.asked_as not in (None, name) for one in rows),
        no_logprobs=sum(not record.get("logprobs") for record in records) if asked else 0,
    )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
