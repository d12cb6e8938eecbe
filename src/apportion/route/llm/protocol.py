"""What a pipeline asks of a language model, and what comes back. Knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

THINK_START, THINK_END = "<think>", "</think>"
Finish = Literal["stop", "length", "filter"]


@dataclass(frozen=True, slots=True)
class Request:
    """One chat turn to complete.

    Attributes:
        user, system: the messages; an empty system message is not sent.
        max_tokens: at most so many new tokens, thinking included.
        thinking: on or off where the chat template has that switch; None leaves the model's default.
        logprobs: ask for the log-probability of each token.
        examples: turns before it, (user, assistant) each, that show how to answer.
        stop: texts that end the completion and are left out of it; thinking is not searched for them.
        temperature: 0 is greedy. seed: of the sampling, so that the same request gives the same text.
        said, then: where not empty, turns after it: the assistant's, then the user's that is to be answered.
        expendable: [start, end) characters of `user` (the passages, best first) that are cut from their end
            before anything else when the prompt is longer than the context.
        whole: a model in this process does not cut the prompt, nor answer one that is too long: the completion is
            empty, and its `cut_prompt_tokens` tell.
    """

    user: str
    system: str = ""
    max_tokens: int = 256
    thinking: bool | None = None
    logprobs: bool = False
    temperature: float = 0.0
    seed: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()
    expendable: tuple[int, int] = (0, 0)
    said: str = ""
    then: str = ""
    whole: bool = False

    @property
    def turns(self) -> list[tuple[str, str]]:
        """(role, text) of every message but the system's, in order.

        >>> Request("Capital?", said="It is a city.", then="Name it.").turns
        [('user', 'Capital?'), ('assistant', 'It is a city.'), ('user', 'Name it.')]
        """
        shown = [turn for user, answer in self.examples for turn in (("user", user), ("assistant", answer))]
        after = [("assistant", self.said), ("user", self.then)] if self.then else []
        return [*shown, ("user", self.user), *after]


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request.

    Attributes:
        text: what is visible; thinking is apart.
        prompt_tokens, completion_tokens: as the model counts them; thinking and end tokens included.
        latency_ms: from sending to the last token of this request; in a batch, from the batch's start.
        token_logprobs: natural log-probabilities of the visible tokens, under the model's own distribution
            (temperature 1); None where they were not asked for or not returned.
        margin: log-probability of the first visible token minus that of the second likeliest there, in nats.
        finish: "length" when max_tokens ended it, "filter" when the server withheld it.
        thinking_text: what was thought before the text, if the model shows it.
        cut_prompt_tokens: prompt tokens left out since the context is shorter; an estimate for servers.
        attempts: calls made until this one succeeded.
        tokens_measured: False when the server reported no usage, so both counts are characters / 4.
        cached_tokens: of the prompt tokens, those that were computed before; None where that is not known.
        raw_text: all that a server sent as content, marks of thinking included; empty for a model in this process.
        weaker: what made this a weaker answer than was asked for (a setting that the server refuses), if anything.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    token_logprobs: tuple[float, ...] | None = None
    finish: Finish = "stop"
    thinking_text: str = ""
    cut_prompt_tokens: int = 0
    attempts: int = 1
    tokens_measured: bool = True
    cached_tokens: int | None = None
    margin: float | None = None
    raw_text: str = ""
    weaker: tuple[str, ...] = ()


@runtime_checkable
class LLM(Protocol):
    """A language model.

    Attributes:
        model: identity, saved with profiles and routers: equal weights, equal text.
        name: what people call it.
        has_logprobs: whether `token_logprobs` can be had. logprobs_reason: how that is known.
        concurrency: how many threads may usefully call `complete` at once.
        batch_size: how many requests one call should carry.
    """

    model: str
    name: str
    has_logprobs: bool
    logprobs_reason: str
    concurrency: int
    batch_size: int

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion for each request, in order.

        Raises:
            ServiceError: a request failed for good, after the retries.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Echo:
    """A stand-in that answers every request alike; for examples and tests, never for a profile that is used.

    >>> Echo("Answer: Bern").complete([Request("Capital of Switzerland?")])[0].text
    'Answer: Bern'
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.model, self.name = f"echo:{text}", "echo"
        self.has_logprobs, self.logprobs_reason = False, "a stand-in has none"
        self.concurrency, self.batch_size = 1, 1

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """The same text for each; tokens are characters / 4."""
        return [Completion(self.text, len(one.user) // 4 + 1, len(self.text) // 4 + 1, 1.0) for one in requests]

    def close(self) -> None:
        """Nothing is held."""


def split_thinking(text: str, *, opened: bool = False) -> tuple[str, str]:
    """(thinking, visible text): what follows the last `</think>` is visible; an open block hides all.

    Args:
        opened: the prompt ended with `<think>`, so that the text begins inside of the block.

    >>> split_thinking("<think>2+2</think>4")
    ('2+2', '4')
    >>> split_thinking("<think>still at it")
    ('still at it', '')
    >>> split_thinking("still at it", opened=True)
    ('still at it', '')
    """
    before, mark, after = text.rpartition(THINK_END)
    if mark:
        return before.replace(THINK_START, "").strip(), after.strip()
    if opened or text.lstrip().startswith(THINK_START):
        return text.replace(THINK_START, "").strip(), ""
    return "", text.strip()


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop sequence in it.

    >>> before_stop("Bern\\nQuestion: more", ["\\nQuestion:"])
    'Bern'
    """
    ends = [at for one in stop if (at := text.find(one)) >= 0]
    return text[: min(ends)].rstrip() if ends else text
