"""A pipeline's request in a client's conversation -> the body that the upstream is asked, shortened where it must be.

The client's system prompt is kept and the pipeline's added beside it, in one message, since many chat templates take
one only. The last message becomes the pipeline's prompt; the turns between stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import dropwhile, takewhile
from typing import Any

from apportion.serve.chat_request import EXTRA, LIMITS, ChatRequest, Message, text_of
from apportion.serve.routing import GREEDY, MAX_STOPS, Habits, Request, cut_passages

_OURS = (EXTRA, "model", "messages", "stream", "stream_options", *LIMITS)
_SYSTEM = ("system", "developer")
_APART = ("max_tokens", "logprobs", "top_logprobs")  # of a probe; they change no token of the text
# How tokens are drawn beside the temperature, with the values that rule no token out.
DRAWING: Mapping[str, tuple[float, ...]] = {"top_p": (1,), "top_k": (0, -1), "min_p": (0,), "typical_p": (1,)}
RUNS_ON = "stop sequences are refused by the server, so the answer may run on beyond them"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may ask for.

    Attributes:
        answer: new tokens where the client gives no limit and the pipeline's is lower; None leaves the pipeline's.
        habits: which parts of a request the upstream takes.
    """

    answer: int | None = None
    habits: Habits = field(default_factory=Habits)

    @property
    def measured(self) -> dict[str, Any]:
        """What a draft asks for beside its text."""
        return {"logprobs": True, **({"top_logprobs": 2} if self.habits.top_logprobs else {})}

    def of(self, chat: ChatRequest, request: Request) -> int:
        """New tokens of an answer."""
        return chat.max_tokens or max(request.max_tokens, self.answer or 0)

    def of_draft(self, chat: ChatRequest, request: Request) -> int:
        """New tokens of a draft."""
        return min(chat.max_tokens or request.max_tokens, request.max_tokens)


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked, in parts that can be shortened.

    Attributes:
        system: the client's and the pipeline's, empty for none. examples: the pipeline's, as turns.
        history: the client's turns before the last message.
        request: the pipeline's. options: the client's other fields, and the limit on new tokens.
        habits: which parts of a request the upstream takes.
        cut: what was left out so far, in words.
    """

    system: str
    examples: tuple[Message, ...]
    history: tuple[Message, ...]
    request: Request
    options: Mapping[str, Any]
    habits: Habits = field(default_factory=Habits)
    cut: tuple[str, ...] = ()

    @property
    def weaker(self) -> tuple[str, ...]:
        """What the upstream's habits make of the answer."""
        lost = ((GREEDY, not self.habits.greedy and self._greedy), (RUNS_ON, not self.habits.stop and bool(self.stop)))
        return tuple(said for said, weaker in lost if weaker)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end the answer: the client's, else the pipeline's."""
        stop = self.options.get("stop")
        listed = stop if isinstance(stop, list) else [stop]
        return tuple(one for one in listed if isinstance(one, str))

    @property
    def _greedy(self) -> bool:
        return "temperature" in self.options and not self.options["temperature"]

    def answers(self, asking: "Asking") -> bool:
        """Whether what comes back for this is what the other asks for, but for its length."""
        return self._drawn() == asking._drawn()

    def _drawn(self) -> dict[str, Any]:
        """The options that make the text; where the likeliest token is taken, none that tells how they are drawn."""
        greedy = self._greedy and self.habits.greedy
        idle = {name for name, every in DRAWING.items() if greedy or self.options.get(name) in every}
        return {name: value for name, value in self.options.items() if name not in _APART and name not in idle}

    def body(self, *, stream: bool = False) -> dict[str, Any]:
        """The body; of a stream with the usage chunk that we need ourselves."""
        asked = [{"role": role, "content": text} for role, text in replace(self.request, examples=()).turns]
        messages = [*self.examples, *self.history, *asked]
        messages = _with_system(self.system, messages, apart=self.habits.system)
        extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return {**_taken(self.options, self.habits), "messages": messages, **extra}

    def followed_by(self, chat: ChatRequest, request: Request, max_tokens: int) -> "Asking":
        """The same with the turns that follow the first, without examples; thinking off where there is a switch and
        the client has not set it."""
        options = {**self.options, "max_tokens": max_tokens}
        if self.habits.thinking_switch and chat.body.get("chat_template_kwargs") is None:
            options["chat_template_kwargs"] = {"enable_thinking": False}
        turns = replace(self.request, said=request.said, then=request.then)
        return replace(self, examples=(), request=turns, options=options)

    def shorter(self) -> "Asking | None":
        """The same with less: passages, then the older half of the turns, then worked examples; None at the end."""
        fewer = cut_passages(self.request)
        if fewer is not None:
            return replace(self, request=fewer, cut=(*self.cut, "passages, the worse ones first"))
        if self.history:
            kept = _from_a_question(self.history[(len(self.history) + 1) // 2 :])
            gone = len(self.history) - len(kept)
            return replace(self, history=kept, cut=(*self.cut, f"the oldest {gone} turns of the conversation"))
        if self.examples:
            return replace(self, examples=(), cut=(*self.cut, "the pipeline's worked examples"))
        return None


def _from_a_question(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns from the first of the user's on: templates refuse a conversation that begins with an answer, and
    servers what a tool says where the call is gone.

    >>> [one["role"] for one in _from_a_question(({"role": "assistant"}, {"role": "user"}, {"role": "assistant"}))]
    ['user', 'assistant']
    """
    return tuple(dropwhile(lambda one: one["role"] != "user", turns))


def ask(chat: ChatRequest, request: Request, limits: Limits) -> Asking:
    """An answer by a pipeline: greedy, as it was profiled, where the client does not set how tokens are drawn."""
    options = {**_options(chat, request, limits), "max_tokens": limits.of(chat, request)}
    return _asking(chat, request, options, limits.habits)


def ask_draft(chat: ChatRequest, request: Request, limits: Limits) -> Asking:
    """The draft: greedy, short, with log-probabilities, thinking off as its prompt says."""
    options = {**_options(chat, request, limits), "max_tokens": limits.of_draft(chat, request)}
    return _asking(chat, request, _measured(options, limits), limits.habits)


def ask_look(chat: ChatRequest, request: Request, limits: Limits) -> Asking:
    """A RAG answer that is looked at before it is given: as long as an answer, measured as a draft."""
    asking = ask(chat, request, limits)
    return replace(asking, options=_measured(asking.options, limits))


def _measured(options: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The options of a probe: greedy and with log-probabilities, whatever the client's are; see `Asking.answers`."""
    kept = {name: value for name, value in options.items() if name != "top_p"}  # which some refuse where greedy
    return {**kept, "temperature": 0, **limits.measured}


def as_sent(chat: ChatRequest, habits: Habits, *, stream: bool = False) -> dict[str, Any]:
    """The client's body but for our own field; of a stream with the usage chunk that we need ourselves.

    The limit on new tokens has two names, and the upstream may take one only.
    """
    body = _limited({name: value for name, value in chat.body.items() if name not in (EXTRA, "model")}, habits)
    if stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return body


def _with_system(system: str, turns: list[Message], *, apart: bool) -> list[Message]:
    """The turns with a system prompt: a message of its own, or the beginning of the first of the user's.

    >>> _with_system("Be brief.", [{"role": "user", "content": "Hi"}], apart=False)
    [{'role': 'user', 'content': 'Be brief.\\n\\nHi'}]
    """
    if not system:
        return turns
    if apart:
        return [{"role": "system", "content": system}, *turns]
    at = next(number for number, one in enumerate(turns) if one["role"] == "user")
    joined = {**turns[at], "content": f"{system}\n\n{text_of(turns[at])}"}
    return [*turns[:at], joined, *turns[at + 1 :]]


def _taken(options: Mapping[str, Any], habits: Habits) -> dict[str, Any]:
    """The options that a server takes, by the names that it takes."""
    found = dict(options)
    if not habits.greedy and not found.get("temperature"):
        found.pop("temperature", None)
    if not habits.stop:
        found.pop("stop", None)
    return _limited(found, habits)


def _limited(body: Mapping[str, Any], habits: Habits) -> dict[str, Any]:
    """The same with one limit on new tokens, the smallest, by the name that the server takes.

    >>> _limited({"n": 2, "max_tokens": 5, "max_completion_tokens": 3}, Habits())
    {'n': 2, 'max_tokens': 3}
    """
    limits = [body[name] for name in LIMITS if body.get(name) is not None]
    limit = {habits.token_key: min(limits)} if limits else {}
    return {**{name: value for name, value in body.items() if name not in LIMITS}, **limit}


def _asking(chat: ChatRequest, request: Request, options: Mapping[str, Any], habits: Habits) -> Asking:
    leading = [text_of(one) for one in takewhile(lambda one: one["role"] in _SYSTEM, chat.messages)]
    turns = chat.messages[len(leading) :]
    last = max(number for number, one in enumerate(turns) if one["role"] == "user")
    system = "\n\n".join(part for part in (*leading, request.system) if part)
    examples = [
        {"role": role, "content": text}
        for pair in request.examples
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return Asking(system, tuple(examples), turns[:last], request, options, habits)


def _options(chat: ChatRequest, request: Request, limits: Limits) -> dict[str, Any]:
    """The pipeline's options, and over them the client's; its nulls mean what leaving out means."""
    asked = {name: value for name, value in chat.body.items() if name not in _OURS and value is not None}
    options: dict[str, Any] = {} if _draws(asked) else {"temperature": request.temperature}
    if request.stop:
        options["stop"] = list(request.stop[:MAX_STOPS])
    options |= asked
    if request.thinking is not None and limits.habits.thinking_switch and "chat_template_kwargs" not in options:
        options["chat_template_kwargs"] = {"enable_thinking": request.thinking}
    return options


def _draws(asked: Mapping[str, Any]) -> bool:
    """Whether a client says how tokens are drawn, such as by `top_p` alone; greedy that would mean nothing."""
    return any(name in asked and asked[name] not in every for name, every in DRAWING.items())
