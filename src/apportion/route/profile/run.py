"""Questions x four pipelines -> a Profile on disk. Concurrent, resumable after a kill at any moment.

Every finished answer is appended to a log beside the output (`FILE.log`) before the next one starts; the
Parquet file is written from it at the end, complete or not at all. With `resume`, what the log holds is not
asked again, except failed rows. Failed calls are rows with an error; a long run of them stops the profile.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from apportion.core.artifact import plain
from apportion.core.errors import ArtifactExistsError, InputError, ServiceError
from apportion.core.lock import sole_writer
from apportion.core.log import AppendLog
from apportion.core.progress import Advance, progress
from apportion.route.ask.evidence import answer_features
from apportion.route.ask.extraction import extract
from apportion.route.ask.pipelines import build_request, uses_passages
from apportion.route.ask.probes import features_of_hits, question_features
from apportion.route.ask.setup import Setup
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.index.bm25 import check_k
from apportion.route.index.corpus import Passage
from apportion.route.llm.protocol import Completion
from apportion.route.profile.file import write_profile
from apportion.route.profile.questions import Question
from apportion.route.profile.records import Measured, Record, question_key

SHOWN_FAILURES = 10
JUDGED = {"direct": "draft", "rag": "rag"}  # answers that a router reads before it goes on: prefix of features
Batch = list[tuple[Question, str]]  # one strategy in each batch


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """How a profile went.

    Attributes:
        rows: of the file, four a question. resumed: of these, finished by an earlier run.
        failed: rows with an error. failures: the first few, with question and reason.
        cut_prompts: answers whose prompt was longer than the context. unmatched: answers that the prompt's
            pattern did not find, so that the last line was taken. estimated_tokens: rows of a server that
            reports no usage.
        logprobs: how it is known whether draft features could be measured; without, they are missing.
        latency: what latencies mean here.
    """

    path: str
    questions: int
    rows: int
    resumed: int
    failed: int
    failures: tuple[str, ...]
    cut_prompts: int
    unmatched: int
    estimated_tokens: int
    has_logprobs: bool
    logprobs: str
    latency: str
    seconds: float


def run_profile(questions: Sequence[Question], setup: Setup, out: Path, *, resume: bool = False) -> ProfileReport:
    """Ask every question in four ways and write the profile.

    Raises:
        ArtifactExistsError: the output or its log is there and resume is off.
        ArtifactMismatchError: the log was made with another model, corpus, prompts or k.
        ServiceError: so many calls failed in a row that the server must be gone; finished work is kept.
    """
    start = time.monotonic()
    check_k(setup.k, 0)
    if not questions:
        raise InputError("profile: no question was given", "give at least one question with answers")
    if out.exists() and not resume:
        raise ArtifactExistsError(f"--out {out}: exists", "continue it with --resume, or choose another --out")
    source = setup.source()
    header = {"model": source.model, "corpus": source.corpus, "prompts": source.prompts, "k": source.k}
    measured = Measured()
    with _sole_log(out.with_name(out.name + ".log"), header, resume=resume) as log:
        for record in log.records:
            measured.add(record)
        resumed = measured.count(questions, STRATEGIES)
        total = len(questions) * len(STRATEGIES)
        _probe_questions(questions, setup, measured, log)
        with progress("profile", total, "answers", done=resumed) as advance:
            _ask_all(_pending(questions, measured, setup.llm.batch_size), setup, measured, log, advance)
    outcomes = [row for question in questions for row in measured.outcomes(question)]
    write_profile(out, outcomes, source)
    return _report(questions, setup, measured, out, resumed, time.monotonic() - start)


@contextmanager
def _sole_log(path: Path, header: Mapping[str, object], *, resume: bool) -> Iterator[AppendLog]:
    """The log, opened by no other process at the same time."""
    with ExitStack() as stack:
        existed = path.exists()
        if existed:  # before it is opened, since opening cuts off an unfinished line
            stack.enter_context(sole_writer(path))
        log = stack.enter_context(AppendLog(path, header, resume=resume))
        if not existed:
            stack.enter_context(sole_writer(path))
        yield log


def _probe_questions(questions: Sequence[Question], setup: Setup, measured: Measured, log: AppendLog) -> None:
    """Search once for each question, and keep its features and how long the search took."""
    missing = [question for question in questions if not measured.is_done(question_key(question), "")]
    with progress("probes", len(missing), "questions") as advance:
        for question in missing:
            start = time.perf_counter()
            hits = setup.retriever.search(question.question, setup.k)
            retrieval_ms = (time.perf_counter() - start) * 1000
            features = {**features_of_hits(hits, question.question), **question_features(question.question)}
            _keep(
                {
                    "question": question_key(question),
                    "strategy": "",
                    "features": features,
                    "retrieval_ms": retrieval_ms,
                },
                measured,
                log,
            )
            advance()


def _pending(questions: Sequence[Question], measured: Measured, batch_size: int) -> Iterator[Batch]:
    """Batches of unfinished rows; a group of questions passes through all strategies before the next."""
    for at in range(0, len(questions), batch_size):
        group = questions[at : at + batch_size]
        for strategy in STRATEGIES:
            batch = [(one, strategy) for one in group if not measured.is_done(question_key(one), strategy)]
            if batch:
                yield batch


def _ask_all(batches: Iterable[Batch], setup: Setup, measured: Measured, log: AppendLog, advance: Advance) -> None:
    """Keep `concurrency` batches in flight; this thread alone writes the log.

    What was in flight when something stops the loop is waited for and kept too.
    """
    patience = max(10, 2 * setup.llm.concurrency)
    failed_in_a_row = 0
    queue = iter(batches)
    running: set[Future[list[Record]]] = set()
    threads = ThreadPoolExecutor(setup.llm.concurrency)
    try:
        while True:
            while len(running) < setup.llm.concurrency and (batch := next(queue, None)):
                running.add(threads.submit(ask, batch, setup))
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                running.discard(future)
                for record in future.result():
                    _keep(record, measured, log)
                    advance()
                    failed_in_a_row = 0 if record.get("error") is None else failed_in_a_row + 1
            if failed_in_a_row >= patience:
                raise ServiceError(
                    f"profile: {failed_in_a_row} calls in a row failed, the last with: {record['error']}",
                    "see to the server, then run the same command with --resume",
                )
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        for future in running:
            if not future.cancelled() and future.exception() is None:
                for record in future.result():
                    _keep(record, measured, log)


def _keep(record: Record, measured: Measured, log: AppendLog) -> None:
    log.append(record)
    measured.add(record)


def ask(batch: Batch, setup: Setup) -> list[Record]:
    """One call for a batch of one strategy; a failed call is a record with an error for each of its rows."""
    strategy = batch[0][1]
    searched_ms, requests, shown = [], [], []
    for question, _ in batch:
        start = time.perf_counter()
        found = setup.retriever.search(question.question, setup.k).passages  # a draft is compared with them too
        searched_ms.append((time.perf_counter() - start) * 1000 if uses_passages(strategy) else 0.0)
        shown.append(found)
        judged = strategy in JUDGED and setup.llm.has_logprobs
        requests.append(build_request(setup.prompts, strategy, question.question, found, logprobs=judged))
    try:
        completions = setup.llm.complete(requests)
    except ServiceError as error:
        return [{"question": question_key(one), "strategy": strategy, "error": error.problem} for one, _ in batch]
    return [
        {
            **_record(question, strategy, completion, search_ms, setup),
            "features": _features(question, strategy, completion, passages, setup),
        }
        for (question, _), completion, search_ms, passages in zip(batch, completions, searched_ms, shown, strict=True)
    ]


def _features(
    question: Question, strategy: str, completion: Completion, passages: Sequence[Passage], setup: Setup
) -> dict[str, float]:
    """What an answer tells that a router decides after: the draft, and the retrieved answer."""
    if strategy not in JUDGED:
        return {}
    text = extract(setup.prompts.of(strategy, question.question), completion).answer
    return answer_features(JUDGED[strategy], text, question.question, passages)


def _record(question: Question, strategy: str, completion: Completion, search_ms: float, setup: Setup) -> Record:
    extracted = extract(setup.prompts.of(strategy, question.question), completion)
    return {
        "question": question_key(question),
        "strategy": strategy,
        "answer": extracted.answer,
        "matched": extracted.matched,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "latency_ms": completion.latency_ms + search_ms,
        "logprobs": plain(completion.token_logprobs),
        "cut": completion.cut_prompt_tokens,
        "attempts": completion.attempts,
        "tokens_measured": completion.tokens_measured,
    }


def _report(
    questions: Sequence[Question], setup: Setup, measured: Measured, out: Path, resumed: int, seconds: float
) -> ProfileReport:
    keys = [(one, strategy) for one in questions for strategy in STRATEGIES]
    records = [measured.records[question_key(one), strategy] for one, strategy in keys]
    failures = [
        f"{one.dataset}/{one.id} {strategy}: {record['error']}"
        for (one, strategy), record in zip(keys, records, strict=True)
        if record.get("error") is not None
    ]
    llm = setup.llm
    return ProfileReport(
        path=str(out),
        questions=len(questions),
        rows=len(records),
        resumed=resumed,
        failed=len(failures),
        failures=tuple(failures[:SHOWN_FAILURES]),
        cut_prompts=sum(bool(record.get("cut")) for record in records),
        unmatched=sum(record.get("matched") is False for record in records),
        estimated_tokens=sum(record.get("tokens_measured") is False for record in records),
        has_logprobs=llm.has_logprobs,
        logprobs=llm.logprobs_reason,
        latency=f"of calls with {llm.concurrency} at once, batches of {llm.batch_size}, the search included",
        seconds=seconds,
    )
