"""The first few questions looked at before the long run: what goes wrong there goes wrong everywhere."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from apportion.route.ask.extraction import FAILED
from apportion.route.ask.strategy import STRATEGIES, USES_COT
from apportion.route.profile.questions import Question
from apportion.route.profile.records import Measured, Record
from apportion.route.profile.scoring import score

QUESTIONS = 8
OFTEN = 0.25  # share of a pipeline's answers from which a habit is worth saying
SAMPLE_CHARS = 160
_ANSWER_FIRST = re.compile(r"(?i)\W*(?:final |short )?answer\b\W{0,4}:")
_FEW_WORDS = 6


@dataclass(frozen=True, slots=True)
class Shares:
    """Of one pipeline's answers to the first questions, each a share in [0, 1].

    Attributes:
        answer_first: the answer comes before any reasoning, where reasoning was asked for.
        not_extracted: no rule found an answer. cut: ended by max_tokens. zero: quality of zero.
        prompt_cut: the prompt was longer than the context. no_passage: the search found nothing.
        asked_again: reasoning ended without an answer, which was asked for once more.
    """

    answers: int
    answer_first: float
    not_extracted: float
    cut: float
    zero: float
    prompt_cut: float
    no_passage: float
    asked_again: float = 0.0


@dataclass(frozen=True, slots=True)
class Preflight:
    """How the first questions went.

    Attributes:
        shares: by strategy. warnings: what to look at before going on; empty when nothing.
        samples: for each pipeline with a warning, how one answer of that kind begins and ends.
    """

    questions: int
    shares: dict[str, Shares]
    warnings: tuple[str, ...]
    samples: tuple[str, ...]


def look(questions: Sequence[Question], measured: Measured, *, has_chat_template: bool) -> Preflight:
    """What the records of these questions say; failed rows are left out.

    Returns:
        Shares of each pipeline, and a warning for each habit that a quarter or more of its answers have.
    """
    shares: dict[str, Shares] = {}
    warnings = [] if has_chat_template else ["the model has no chat template: prompts are plain text"]
    samples: list[str] = []
    for strategy, reasons in zip(STRATEGIES, USES_COT, strict=True):
        pairs = [(one, record) for one in questions if (record := measured.answer(one, strategy)) is not None]
        if not pairs:
            continue
        shares[strategy], told, shown = _pipeline(strategy, pairs, reasons)
        warnings += told
        samples += shown
    if shares and all(one.zero == 1.0 for one in shares.values()):
        warnings.append("no answer of any pipeline earned a point: are the gold answers those of these questions?")
    return Preflight(len(questions), shares, tuple(warnings), tuple(samples))


def _pipeline(
    strategy: str, pairs: Sequence[tuple[Question, Record]], reasons: bool
) -> tuple[Shares, list[str], list[str]]:
    first = [reasons and _answers_first(record) for _, record in pairs]
    failed = [record["rule"] in FAILED for _, record in pairs]
    cut = [record["finish"] == "length" for _, record in pairs]
    habits = (
        ("give the answer before reasoning", first),
        ("have no answer that a rule finds", failed),
        ("are cut by max_tokens", cut if reasons else [False] * len(cut)),
        ("had their prompt cut to the context", [bool(record["cut"]) for _, record in pairs]),
        ("had no passage, so they were asked without", [record["asked_as"] != strategy for _, record in pairs]),
        (
            "end their reasoning without an answer, which was asked for",
            [record.get("again") is not None for _, record in pairs],
        ),
    )
    warnings, samples = [], []
    for what, found in habits:
        if sum(found) >= OFTEN * len(found) and any(found):
            warnings.append(f"{strategy}: {sum(found)} of {len(found)} answers {what}")
            text = pairs[found.index(True)][1]["completion"]
            samples.append(f"{strategy}, {what.split(',')[0]}: {_sample(text)}")
    n = len(pairs)
    zero = sum(score(record["answer"], one.answers).f1 == 0 for one, record in pairs)
    rates = [sum(found) / n for _, found in habits]
    return Shares(n, rates[0], rates[1], sum(cut) / n, zero / n, *rates[3:]), warnings, samples


def _answers_first(record: Record) -> bool:
    """Whether nothing was thought before the answer."""
    text = record["completion"].strip()
    if record.get("thought_chars"):
        return False
    return bool(_ANSWER_FIRST.match(text)) or len(text.split()) < _FEW_WORDS


def _sample(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SAMPLE_CHARS else f"{text[: SAMPLE_CHARS // 2]} ... {text[-SAMPLE_CHARS // 2 :]}"
