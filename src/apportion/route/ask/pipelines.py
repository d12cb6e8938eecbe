"""The four pipelines: question and passages -> Request, and Completion -> answer. Calls no model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from apportion.route.ask.prompts import Prompt, Prompts
from apportion.route.ask.strategy import STRATEGIES, USES_RAG
from apportion.route.index.corpus import Passage
from apportion.route.llm.protocol import Completion, Request

_IN_USER = re.compile(r"\{(question|passages)\}")
_IN_PASSAGE = re.compile(r"\{(number|title|text)\}")


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer, and whether the pattern found it; if not, it is the last line of the visible text."""

    answer: str
    matched: bool


def uses_passages(strategy: str) -> bool:
    """Whether a strategy retrieves.

    >>> uses_passages("rag+cot")
    True
    """
    return USES_RAG[STRATEGIES.index(strategy)]


def build_request(
    prompts: Prompts,
    strategy: str,
    question: str,
    passages: Sequence[Passage] = (),
    *,
    logprobs: bool = False,
) -> Request:
    """What a strategy asks; greedy. Braces in questions and passages mean nothing.

    An empty retrieval result leaves the place of the passages empty.

    >>> from apportion.route.ask.prompts import load_prompts
    >>> build_request(load_prompts(), "rag", "Who?", [Passage("1", "T", "x")]).user
    '[1] T: x\\n\\nQuestion: Who?'
    """
    prompt = prompts.of(strategy)
    block = passage_block(prompts.passage, passages) if uses_passages(strategy) else ""
    filling = {"question": question, "passages": block}
    user, span, end = "", (0, 0), 0
    for match in _IN_USER.finditer(prompt.user):
        user += prompt.user[end : match.start()]
        if match[1] == "passages":
            span = (len(user), len(user) + len(block))
        user += filling[match[1]]
        end = match.end()
    return Request(
        user=user + prompt.user[end:],
        system=prompt.system,
        max_tokens=prompt.max_tokens,
        thinking=prompt.thinking,
        logprobs=logprobs,
        expendable=span,
    )


def passage_block(template: str, passages: Sequence[Passage]) -> str:
    """Passages as a prompt shows them, numbered from 1, best first."""
    return "".join(_passage(template, number, one) for number, one in enumerate(passages, start=1))


def _passage(template: str, number: int, passage: Passage) -> str:
    filling = {"number": str(number), "title": passage.title, "text": passage.text}
    return _IN_PASSAGE.sub(lambda match: filling[match[1]], template)


def extract(prompt: Prompt, completion: Completion) -> Extracted:
    """The last non-empty match of the prompt's pattern, stripped.

    It is sought in the visible text, and if it is not there, in `<think>...</think>` followed by that text.

    >>> extract(Prompt("{question}", answer_pattern="= *(.*)"), Completion("1+1 = 2\\n2+2 = 4", 1, 1, 0.0))
    Extracted(answer='4', matched=True)
    """
    found = _last_match(prompt.answer_pattern, completion.text)
    if not found and completion.thinking_text:
        shown = f"</think>\n\n{completion.text}" if completion.text else ""
        found = _last_match(prompt.answer_pattern, f"<think>\n{completion.thinking_text}\n{shown}")
    if found:
        return Extracted(found, matched=True)
    lines = completion.text.strip().splitlines()
    return Extracted(lines[-1].strip() if lines else "", matched=False)


def _last_match(pattern: str, text: str) -> str:
    found = ""
    for match in re.finditer(pattern, text):
        found = (match[1] or "").strip() or found
    return found
