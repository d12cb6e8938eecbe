"""Requests -> what was answered. Reasoning that ends without an answer is followed by one turn that asks for it.

The second turn is the same conversation with the model's own reasoning in it, a short limit on new tokens and
thinking off; it is made once, and what is not found then is not found. Its text is the prompt's `again`. The worked
examples are left out of it: a small model takes its answer from them rather than from what it reasoned. Its text names
no kinds of answers for the same reason ("a name, a place, a date" is answered with a name).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from apportion.core.errors import PromptTooLongError, ServiceError
from apportion.route.ask.extraction import Extracted, extract, tidy
from apportion.route.ask.kinds import Kind
from apportion.route.ask.prompts import Prompt, Prompts
from apportion.route.ask.strategy import STRATEGIES, USES_COT
from apportion.route.llm.protocol import LLM, Completion, Request

LINE_CHARS = 80  # an answer without its "Answer:" is one line, not longer
Failed = ServiceError | PromptTooLongError
_LIMITS: dict[Kind, int] = {"short": 32, "yes_no": 12, "number": 24}  # new tokens of the second turn


@dataclass(frozen=True, slots=True)
class Answered:
    """What a pipeline answered.

    Attributes:
        first: the completion of its request. extracted: the answer, in the second turn where there was one.
        second: what was said when it was asked once more; None where it was not.
        weaker: why the second turn brought nothing, where it failed.
        unserved: it failed at the server, and may not if it is made another time.
    """

    first: Completion
    extracted: Extracted
    second: Completion | None = None
    weaker: tuple[str, ...] = ()
    unserved: bool = False

    @property
    def shown(self) -> str:
        """All that the model showed, both turns."""
        return self.first.text if self.second is None else f"{self.first.text}\n\n{self.second.text}".rstrip()

    @property
    def total(self) -> Completion:
        """The first completion with the tokens and the time of both."""
        first, second = self.first, self.second
        if second is None:
            return replace(first, weaker=(*first.weaker, *self.weaker))
        cached = (first.cached_tokens, second.cached_tokens)
        return replace(
            first,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
            latency_ms=first.latency_ms + second.latency_ms,
            cached_tokens=None if None in cached else sum(one or 0 for one in cached),
            cut_prompt_tokens=max(first.cut_prompt_tokens, second.cut_prompt_tokens),
            attempts=first.attempts + second.attempts,
            tokens_measured=first.tokens_measured and second.tokens_measured,
            weaker=tuple(dict.fromkeys((*first.weaker, *second.weaker, *self.weaker))),
        )


def complete(llm: LLM, prompts: Prompts, asked: Sequence[tuple[str, str, Request]]) -> list[Answered]:
    """What a model answers; all second turns are one more call.

    Args:
        prompts: that the requests were built of.
        asked: strategy as it is asked (`asked_as`), question and request of each.

    Returns:
        In order. A second turn that fails is said in `weaker`, and the first stands.

    Raises:
        ServiceError: the first turn failed for good.
    Cost: one call, and a second for those whose reasoning ended without an answer.
    Source: ours; the two turns are those of Kojima et al., arXiv 2205.11916, section 3.1, made only where needed.

    >>> from apportion.route.ask.prompts import load_prompts
    >>> from apportion.route.llm import Echo
    >>> found = complete(Echo("Answer: Bern"), load_prompts(), [("cot", "Capital?", Request("Capital?"))])[0]
    >>> found.extracted.answer, found.second
    ('Bern', None)
    """
    completions = llm.complete([request for _, _, request in asked])
    found = []
    for (strategy, question, _), completion in zip(asked, completions, strict=True):
        found.append(Answered(completion, extract(prompts.of(strategy, question), completion)))
    turns: dict[int, Request] = {}
    for number, (strategy, question, request) in enumerate(asked):
        second = second_turn(strategy, prompts.of(strategy, question), request, found[number])
        if second is not None:
            turns[number] = second
    for number, said in zip(turns, _said(llm, list(turns.values())), strict=True):
        strategy, question, _ = asked[number]
        found[number] = with_second(prompts.of(strategy, question), found[number], said)
    return found


def second_turn(strategy: str, prompt: Prompt, request: Request, answered: Answered) -> Request | None:
    """The request for the answer alone; None where an answer was found, or there is no reasoning to go on from.

    Args:
        strategy: as it was asked. prompt: of its question. request, answered: its first turn.
    """
    first, text = answered.first, prompt.asks_again
    reasons = USES_COT[STRATEGIES.index(strategy)]
    if not reasons or not text or answered.extracted.matched or first.finish == "filter" or not first.text.strip():
        return None
    limit = prompt.max_tokens if first.thinking_text else min(prompt.max_tokens, _LIMITS[prompt.kind])
    turns = replace(request, examples=(), said=first.text, then=text)
    return replace(turns, max_tokens=limit, thinking=False, logprobs=False)


def with_second(prompt: Prompt, answered: Answered, said: Completion | Failed) -> Answered:
    """The same with what the second turn brought: a completion, or why it failed."""
    if not isinstance(said, Completion):
        reason = f"the answer was asked for once more, which failed: {said.problem}"
        return replace(answered, weaker=(reason,), unserved=isinstance(said, ServiceError))
    found = read_second(prompt, said)
    return replace(answered, second=said, extracted=found or answered.extracted)


def read_second(prompt: Prompt, said: Completion) -> Extracted | None:
    """The answer in a second turn: by the rules, or all of it where it is one short line; None where none is.

    >>> read_second(Prompt("{question}", answer_pattern="Answer: (.*)"), Completion("Bern.", 1, 1, 0.0))
    Extracted(answer='Bern', rule='asked again')
    """
    found = extract(prompt, said)
    line = said.text.strip()
    if found.matched:
        return Extracted(found.answer, "asked again")
    if said.finish == "stop" and line and "\n" not in line and len(line) <= LINE_CHARS and (answer := tidy(line)):
        return Extracted(answer, "asked again")
    return None


def _said(llm: LLM, turns: list[Request]) -> list[Completion | Failed]:
    """Completions of second turns; where the call fails, one by one, each with its reason."""
    if not turns:
        return []
    try:
        return list(llm.complete(turns))
    except (ServiceError, PromptTooLongError) as error:
        if len(turns) == 1:
            return [error]
        return [said for one in turns for said in _said(llm, [one])]
