"""The four pipelines: question and passages -> Request. Calls no model; `extraction` reads what comes back."""

import re
from collections.abc import Sequence

from apportion.route.ask.prompts import Prompt, Prompts
from apportion.route.ask.strategy import STRATEGIES, USES_COT, USES_RAG, strategy_of
from apportion.route.index.corpus import Passage
from apportion.route.llm.protocol import Request

_IN_USER = re.compile(r"\{(question|passages)\}")
_IN_PASSAGE = re.compile(r"\{(number|title|text)\}")


def uses_passages(strategy: str) -> bool:
    """Whether a strategy retrieves.

    >>> uses_passages("rag+cot")
    True
    """
    return USES_RAG[STRATEGIES.index(strategy)]


def asked_as(strategy: str, passages: Sequence[Passage]) -> str:
    """The strategy that is really asked: without a passage, rag is direct and rag+cot is cot.

    >>> asked_as("rag+cot", [])
    'cot'
    """
    return strategy if passages else strategy_of(need_rag=False, need_cot=USES_COT[STRATEGIES.index(strategy)])


def build_request(
    prompts: Prompts,
    strategy: str,
    question: str,
    passages: Sequence[Passage] = (),
    *,
    logprobs: bool = False,
) -> Request:
    """What a strategy asks about a question; greedy. Braces in questions and passages mean nothing.

    Args:
        prompts: of the four strategies; the one for the question's kind is taken.
        strategy: "direct", "rag", "cot" or "rag+cot"; without passages, see `asked_as`.
        passages: best first; only strategies that retrieve show them.
        logprobs: ask for the log-probabilities of the answer's tokens.

    Returns:
        A request whose `expendable` characters are the passages.

    Cost: no call; microseconds.

    >>> from apportion.route.ask.prompts import load_prompts
    >>> build_request(load_prompts(), "rag", "Who?", [Passage("1", "T", "x")]).user
    '[1] T: x\\n\\nQuestion: Who?'
    """
    strategy = asked_as(strategy, passages)
    prompt = prompts.of(strategy, question)
    block = passage_block(prompts.passage, passages) if uses_passages(strategy) else ""
    user, span = _fill(prompt, question, block)
    return Request(
        user=user,
        system=prompt.system,
        max_tokens=prompt.max_tokens,
        thinking=prompt.thinking,
        logprobs=logprobs,
        examples=tuple((_fill(prompt, one.question, one.passages)[0], one.answer) for one in prompt.examples),
        stop=prompt.stop,
        expendable=span,
    )


def _fill(prompt: Prompt, question: str, block: str) -> tuple[str, tuple[int, int]]:
    """The user's message, and where in it the passages are."""
    filling = {"question": question, "passages": block}
    user, span, end = "", (0, 0), 0
    for match in _IN_USER.finditer(prompt.user):
        user += prompt.user[end : match.start()]
        if match[1] == "passages":
            span = (len(user), len(user) + len(block))
        user += filling[match[1]]
        end = match.end()
    return user + prompt.user[end:], span


def passage_block(template: str, passages: Sequence[Passage]) -> str:
    """Passages as a prompt shows them, numbered from 1, best first.

    >>> passage_block("[{number}] {title}: {text} ", [Passage("1", "Bern", "a city"), Passage("2", "Aare", "a river")])
    '[1] Bern: a city [2] Aare: a river '
    """
    return "".join(_passage(template, number, one) for number, one in enumerate(passages, start=1))


def _passage(template: str, number: int, passage: Passage) -> str:
    filling = {"number": str(number), "title": passage.title, "text": passage.text}
    return _IN_PASSAGE.sub(lambda match: filling[match[1]], template)
