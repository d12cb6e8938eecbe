"""Questions x four pipelines -> a Profile on disk. Concurrent, resumable after a kill at any moment.

Every finished answer is appended to a log beside the output (`FILE.log`) before the next one starts; the
Parquet file is written from it at the end, complete or not at all. With `resume`, what the log holds is not
asked again, except failed rows. Failed calls are rows with an error; a long run of them stops the profile.

    probes -> the first 8 questions, looked at -> some questions one at a time, for latency -> the rest
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from apportion.core.errors import ArtifactExistsError, InputError, ServiceError
from apportion.core.lock import sole_writer
from apportion.core.log import AppendLog
from apportion.core.progress import Advance, progress
from apportion.route.ask.setup import Setup
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.index.bm25 import check_k
from apportion.route.profile.asking import Batch, ask, ask_alone, probe
from apportion.route.profile.file import write_profile
from apportion.route.profile.latency import LatencyModel, fit_latency
from apportion.route.profile.preflight import QUESTIONS as FIRST
from apportion.route.profile.preflight import Preflight, look
from apportion.route.profile.questions import Question
from apportion.route.profile.records import ALONE, Measured, Record, question_key
from apportion.route.profile.report import ProfileReport, report_on

UNLOADED = 8  # questions whose four answers are also timed with nothing else running


def run_profile(
    questions: Sequence[Question],
    setup: Setup,
    out: Path,
    *,
    resume: bool = False,
    unloaded: int = UNLOADED,
    on_preflight: Callable[[Preflight], None] = lambda found: None,
) -> ProfileReport:
    """Ask every question in four ways and write the profile.

    Args:
        questions: with gold answers; ids unique in a dataset.
        setup: model, retriever, prompts and number of passages.
        out: the Parquet file; its log lies beside it and may be deleted afterwards.
        resume: continue what the log holds.
        unloaded: so many questions, evenly spread, are asked once more with nothing else running, and the latency
            of all others is estimated from them; 0 keeps latencies as measured under load. Not done where calls
            are made one at a time anyway.
        on_preflight: told how the first 8 questions went, before the long run.

    Returns:
        What happened, per pipeline. All rows are in the file, failed ones with their error.

    Raises:
        ArtifactExistsError: the output or its log is there and resume is off.
        ArtifactMismatchError: the log was made with another model, corpus, prompts or k.
        ServiceError: so many calls failed in a row that the server must be gone, or all failed; finished work is kept.
    Cost: four calls and one search a question, a further short call where reasoning ended without an answer, and four
        calls for each of the `unloaded` questions.

    >>> import tempfile
    >>> from apportion.route.ask.prompts import load_prompts
    >>> from apportion.route.index import Passage, build_index
    >>> from apportion.route.llm import Echo
    >>> folder = Path(tempfile.mkdtemp())
    >>> index = build_index([Passage("1", "Bern", "Bern is the capital of Switzerland.")], folder / "index")
    >>> asked = [Question("1", "capitals", "What is the capital of Switzerland?", ("Bern",))]
    >>> report = run_profile(asked, Setup(Echo("Answer: Bern"), index, load_prompts()), folder / "profile.parquet")
    >>> report.rows, report.failed, report.pipelines["rag"].quality
    (4, 0, 1.0)
    """
    start = time.monotonic()
    check_k(setup.k, 0)
    if not questions:
        raise InputError("profile: no question was given", "give at least one question with answers")
    if unloaded < 0:
        raise InputError(f"--unloaded {unloaded}: expected 0 or a number of questions")
    if out.exists() and not resume:
        raise ArtifactExistsError(f"--out {out}: exists", "continue it with --resume, or choose another --out")
    source = setup.source()
    header = source.identity
    measured = Measured()
    with _sole_log(out.with_name(out.name + ".log"), header, resume=resume) as log:
        for record in log.records:
            measured.add(record)
        resumed = measured.count(questions, STRATEGIES)
        preflight = _measure(questions, setup, measured, log, unloaded, on_preflight)
    model = fit_latency(measured.alone())
    outcomes = [row for question in questions for row in measured.outcomes(question, model)]
    if all(row.error for row in outcomes):
        raise ServiceError(
            f"profile: all {len(outcomes)} answers failed, the last with: {outcomes[-1].error}",
            "see to the server, then run the same command with --resume",
        )
    latency = _latency(setup, model)
    write_profile(out, outcomes, replace(source, latency=latency))
    return report_on(
        questions,
        outcomes,
        measured,
        setup,
        path=str(out),
        resumed=resumed,
        latency=latency,
        preflight=preflight,
        seconds=time.monotonic() - start,
    )


def _measure(
    questions: Sequence[Question],
    setup: Setup,
    measured: Measured,
    log: AppendLog,
    unloaded: int,
    on_preflight: Callable[[Preflight], None],
) -> Preflight:
    """Everything that is missing, in the order of the file's head."""
    _probe_questions(questions, setup, measured, log)
    first, rest = questions[:FIRST], questions[FIRST:]
    size, done = setup.llm.batch_size, measured.count(questions, STRATEGIES)
    with progress("profile", len(questions) * len(STRATEGIES), "answers", done=done) as advance:
        _ask_all(_pending(first, measured, size), setup, measured, log, advance)
        found = look(first, measured, has_chat_template=getattr(setup.llm, "has_chat_template", True))
        on_preflight(found)
        if setup.llm.concurrency * size > 1:
            _time_alone(spread(questions, unloaded), setup, measured, log)
        _ask_all(_pending(rest, measured, size), setup, measured, log, advance)
    return found


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """So many questions, evenly spread over the file.

    >>> spread([Question(str(n), "d", "Why?", ("x",)) for n in range(10)], 2)[1].id
    '5'
    """
    count = min(count, len(questions))
    return [questions[at * len(questions) // count] for at in range(count)]


def _time_alone(questions: Sequence[Question], setup: Setup, measured: Measured, log: AppendLog) -> None:
    """Each question under each strategy, one at a time; a call that fails gives no time."""
    pairs = [(one, name) for one in questions for name in STRATEGIES]
    missing = [(one, name) for one, name in pairs if not measured.is_done(question_key(one), ALONE + name)]
    if not missing:
        return
    for _, name in missing[: len(STRATEGIES)]:
        ask([(missing[0][0], name)], setup)  # what the first single call sets up is not part of its time
    with progress("latency", len(missing), "answers") as advance:
        for question, name in missing:
            with suppress(ServiceError):
                _keep(ask_alone(question, name, setup), measured, log)
            advance()


def _latency(setup: Setup, model: LatencyModel | None) -> str:
    """What the latencies of the file mean."""
    llm = setup.llm
    if model is not None:
        return str(model)
    return f"of calls with {llm.concurrency} at once, batches of {llm.batch_size}, the search included"


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
            _keep(probe(question, setup), measured, log)
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
