"""What a server will not have, learned from its refusals: the request it is sent, and what that makes weaker."""

import re
from dataclasses import dataclass, replace
from typing import Any

from apportion.route.llm.protocol import Request

GREEDY = "temperature is refused by the server, so answers are not greedy"
STOP = "stop sequences are refused by the server; they are cut off afterwards"
MAX_STOPS = 4  # OpenAI's limit
REFUSING = (400, 422, 500, 501)  # with which servers answer a request that has a part they do not know
PROBE = Request("Say hello.", "Be brief.", max_tokens=8, thinking=False, logprobs=True, stop=("\n\n\n",))
"""A short request with every part that a server may refuse."""


@dataclass(frozen=True, slots=True)
class Habits:
    """Which parts of a request a server takes.

    Attributes:
        token_key: the name of the limit on new tokens. system: whether a system message is a message of its own.
        greedy: whether temperature may be given. stop: whether stop sequences may be.
        thinking_switch: whether the chat template's switch may be. logprobs, top_logprobs: likewise.
    """

    token_key: str = "max_tokens"
    system: bool = True
    greedy: bool = True
    stop: bool = True
    thinking_switch: bool = True
    logprobs: bool = True
    top_logprobs: bool = True

    def weaker(self, request: Request) -> tuple[str, ...]:
        """What this makes of an answer to the request."""
        lost = ((GREEDY, not self.greedy), (STOP, not self.stop and bool(request.stop)))
        return tuple(said for said, weaker in lost if weaker)


_REFUSALS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # in the server's words; the habit it shows; what to do
    ("token_key", r"max_completion_tokens|max_tokens.{0,60}(not supported|unsupported|unrecognized|unknown)"
     r"|(unsupported|unrecognized|unknown|not supported).{0,60}max_tokens", {"token_key": "max_completion_tokens"}),
    ("top_logprobs", r"top_logprobs", {"top_logprobs": False}),
    ("logprobs", r"logprob", {"logprobs": False}),
    ("thinking_switch", r"chat_template_kwargs|enable_thinking", {"thinking_switch": False}),
    ("greedy", r"temperature", {"greedy": False}),
    ("system", r"\bsystem\b|role", {"system": False}),
    ("stop", r"\bstop\b", {"stop": False}),
)  # fmt: skip
_BLIND: tuple[dict[str, Any], ...] = (  # where the refusal names nothing: the least usual parts first
    {"thinking_switch": False},
    {"top_logprobs": False},
    {"logprobs": False},
    {"greedy": False},
)


def after_refusal(habits: Habits, said: str, *, blind: bool = False) -> Habits | None:
    """The habits that a refusal shows; None when nothing is left to give up.

    Args:
        blind: where the refusal names no part of a request, give up the least usual one.

    >>> after_refusal(Habits(), "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.").token_key
    'max_completion_tokens'
    """
    named = [change for _, words, change in _REFUSALS if re.search(words, said, re.IGNORECASE | re.DOTALL)]
    for change in (*named, *(_BLIND if blind and not named else ())):
        other = replace(habits, **change)
        if other != habits:
            return other
    return None


def body_of(request: Request, model: str, habits: Habits) -> dict[str, Any]:
    """The arguments of `chat.completions.create`."""
    options: dict[str, Any] = {"model": model, "messages": _messages(request, habits)}
    options[habits.token_key] = request.max_tokens
    if habits.greedy or request.temperature > 0:
        options["temperature"] = request.temperature
    if request.temperature > 0:
        options["seed"] = request.seed
    if request.stop and habits.stop:
        options["stop"] = list(request.stop[:MAX_STOPS])
    if request.logprobs and habits.logprobs:
        options["logprobs"] = True
        if habits.top_logprobs:
            options["top_logprobs"] = 2
    if request.thinking is not None and habits.thinking_switch:
        options["extra_body"] = {"chat_template_kwargs": {"enable_thinking": request.thinking}}
    return options


def _messages(request: Request, habits: Habits) -> list[dict[str, str]]:
    turns = request.turns
    if request.system and habits.system:
        turns.insert(0, ("system", request.system))
    elif request.system:
        turns[0] = ("user", f"{request.system}\n\n{turns[0][1]}")
    return [{"role": role, "content": content} for role, content in turns]
