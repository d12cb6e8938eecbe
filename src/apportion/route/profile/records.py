"""What a running profile records: one line for a question's probe, one for each answer. Values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apportion.core.artifact import digest_of
from apportion.route.ask.extraction import FAILED
from apportion.route.ask.probes import draft_features, retrieved_features
from apportion.route.ask.strategy import STRATEGIES, USES_COT
from apportion.route.llm.response import whole_characters
from apportion.route.profile.latency import LatencyModel
from apportion.route.profile.profile import Outcome
from apportion.route.profile.questions import Question
from apportion.route.profile.scoring import score

Record = dict[str, Any]
Key = tuple[str, str]  # question key, strategy; "" is the question's probe, "alone:rag" an answer timed alone
ALONE = "alone:"


def question_key(question: Question) -> str:
    """16 hex digits of dataset, id and text; gold answers may change, since rows are scored at the end."""
    return digest_of([question.dataset, question.id, question.question])[:16]


def is_unasked(record: Record) -> bool:
    """Whether reasoning without an answer was not asked for it: recorded before that was done, or the call failed.

    >>> is_unasked({"strategy": "cot", "rule": "last line"}), is_unasked({"strategy": "cot", "rule": "pattern"})
    (True, False)
    >>> is_unasked({"strategy": "cot", "rule": "last line", "again": None, "unserved": True})
    True
    """
    if record.get("unserved"):
        return True
    reasons = record["strategy"] in STRATEGIES and USES_COT[STRATEGIES.index(record["strategy"])]
    return reasons and record.get("rule") in FAILED and "again" not in record


@dataclass(slots=True)
class Measured:
    """Finished work by (question key, strategy); a failed row counts as not finished, as does `is_unasked`."""

    records: dict[Key, Record] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        self.records[record["question"], record["strategy"]] = record

    def is_done(self, key: str, strategy: str) -> bool:
        record = self.records.get((key, strategy))
        return record is not None and record.get("error") is None and not is_unasked(record)

    def answers(self, questions: Sequence[Question], strategy: str) -> list[Record]:
        """The records of a strategy that did not fail."""
        return [record for one in questions if (record := self.answer(one, strategy)) is not None]

    def answer(self, question: Question, strategy: str) -> Record | None:
        """What a question was answered, finished or to be asked for once more; None where that failed or never ran."""
        record = self.records.get((question_key(question), strategy))
        return record if record is not None and record.get("error") is None else None

    def alone(self) -> list[Record]:
        """The records of answers that were timed alone."""
        return [record for (_, strategy), record in self.records.items() if strategy.startswith(ALONE)]

    def outcomes(self, question: Question, latency: LatencyModel | None = None) -> list[Outcome]:
        """The four rows of a question, scored; a strategy that never ran is a failed row.

        Args:
            latency: what rows that were not timed alone are estimated by; without it they keep what was measured.
        """
        key = question_key(question)
        probe = self.records.get((key, ""), {})
        direct, rag = (self.records.get((key, strategy), {}) for strategy in ("direct", "rag"))
        losses = draft_features(direct.get("logprobs"), direct.get("margin"))
        losses |= retrieved_features(rag.get("logprobs"), rag.get("margin"))
        said = direct.get("features", {}) | rag.get("features", {})
        features: Mapping[str, float] = {**probe.get("features", {}), **said, **losses}
        return [
            _outcome(
                question,
                strategy,
                self.records.get((key, strategy)),
                probe,
                features,
                _latency(self.records, key, strategy, latency),
            )
            for strategy in STRATEGIES
        ]

    def count(self, questions: Sequence[Question], strategies: Sequence[str]) -> int:
        """How many rows of these questions are finished."""
        return sum(self.is_done(question_key(one), strategy) for one in questions for strategy in strategies)


def _latency(
    records: Mapping[Key, Record], key: str, strategy: str, model: LatencyModel | None
) -> tuple[float | None, bool]:
    """Milliseconds of a row, and whether they were measured."""
    alone, record = records.get((key, ALONE + strategy)), records.get((key, strategy), {})
    calls = 1 if record.get("again") is None else 2
    if alone is not None and alone.get("calls", 1) == calls:
        return alone["latency_ms"], True
    if model is None or "prompt_tokens" not in record:
        return record.get("latency_ms"), True
    tokens = record["prompt_tokens"], record["completion_tokens"]
    return model.estimate(*tokens, record.get("search_ms", 0.0), calls), False


def _outcome(
    question: Question,
    strategy: str,
    record: Record | None,
    probe: Record,
    features: Mapping[str, float],
    latency: tuple[float | None, bool],
) -> Outcome:
    shared: dict[str, Any] = {
        "dataset": question.dataset,
        "question_id": question.id,
        "question": question.question,
        "answers": question.answers,
        "strategy": strategy,
        "draft_nll": features.get("draft_nll_mean"),
        "retrieval_ms": probe.get("retrieval_ms"),
        "features": features,
    }
    if record is None or record.get("error") is not None:
        reason = "was not run" if record is None else whole_characters(str(record["error"]))
        return Outcome(**shared, error=reason)
    result = score(record["answer"], question.answers)
    return Outcome(
        **shared,
        answer=record["answer"],
        f1=result.f1,
        em=result.em,
        prompt_tokens=record["prompt_tokens"],
        cached_tokens=record.get("cached_tokens"),
        completion_tokens=record["completion_tokens"],
        latency_ms=latency[0],
        latency_measured=latency[1],
        loaded_ms=record["latency_ms"],
        completion_measured=record["tokens_measured"],
        completion=record.get("completion"),
        again=record.get("again"),
        finish=record.get("finish"),
        rule=record.get("rule"),
        kind=record.get("kind"),
        asked_as=record.get("asked_as"),
        cut_tokens=record.get("cut"),
        passages=tuple(record.get("passages", ())),
    )
