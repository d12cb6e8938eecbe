"""An upstream's stream passed on to a client, counted on the way.

Events are read, but for those of the shape of one that was (see `shape`), and pass as the bytes they are, except the
first (which gets the decision), those at the end (which get what came to be weaker since), those with usage (counted,
and shown only to a client that asked for it) and those with `<think>` (which moves into `reasoning_content`). Comments
pass too. What no client could read becomes an error, as does a stream that breaks off before all its choices ended.
Where reasoning ends without an answer, the end is held back until the second turn has been made and sent.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from apportion.serve.decision import UNTOLD, Decided, Outcome, Spent, counted, usage
from apportion.serve.events import DONE, END, data_of, event, object_in
from apportion.serve.refusal import Refusal
from apportion.serve.shape import Shape, shape_of
from apportion.serve.thinking import Thinking
from apportion.serve.turns import SecondTurn
from apportion.serve.upstream_errors import beginning, choices_of, fails, refused

MAX_EVENT_BYTES = 4 << 20
MAX_KEPT_CHARS = 4 << 20  # of what an answer says and thinks: more than models write
NO_REASON = "the upstream did not say why the answer ended"
BAD = "bad_upstream_answer"
SHAPES = 8  # taken one after the other without use, after which none is: each chunk has another (log-probabilities)


class Relay:
    """Passes one stream on.

    Args:
        decided: what the first event says. outcome: filled in as the events pass.
        include_usage: whether the client asked for a usage chunk.
        elapsed_ms: time since the request came.
        choices: how many answers were asked for, each with its own thinking and its own end.
        keeps_text: whether the outcome gets the answer's text, as for the log that holds prompts.
        key: to the upstream; taken out of what is told of its errors.

    Attributes:
        second_turn: made where the answer needs one; None where it cannot.
    """

    def __init__(
        self,
        decided: Decided,
        outcome: Outcome,
        *,
        include_usage: bool,
        elapsed_ms: Callable[[], float],
        choices: int = 1,
        keeps_text: bool = False,
        key: str = "",
    ) -> None:
        self._decided, self._outcome, self._include_usage = decided, outcome, include_usage
        self._elapsed_ms, self._key = elapsed_ms, key
        self._rest = b""
        self._stamp: dict[str, Any] | None = None  # of the first chunk; None before it
        self._pieces = 0
        self._counted: Spent | None = None
        self._choices = choices
        self._over: set[int] = set()  # choices that told their end
        self._thinking: Thinking | None = Thinking(choices)  # None once nothing more is to be moved
        self._ended = self._failed = False
        self.second_turn: SecondTurn | None = None
        self._keeps_text = keeps_text
        self._said = _Said()  # while a second turn is possible, or where the text is kept
        self._last: dict[str, Any] | None = None  # the chunk with the end, held back
        self._second = Spent()
        self._begun = False  # a chunk with choices came
        self._told: tuple[str, ...] = ()  # of what made the outcome weaker
        self._shape: Shape | None = None  # of the last chunk that was read and passed as the bytes it is
        self._shapes = SHAPES  # that may still be taken

    async def events(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The client's bytes, one block for each block that the upstream sent; then usage and the end, or an error.

        Raises:
            Refusal: the upstream broke off.
        """
        async for data in source:
            if passed := self._pass(data):
                yield passed
            if self._failed:
                return
        if data_of(self._rest) == END or object_in(data_of(self._rest)):  # a last event without its blank line
            yield self._pass(b"\n\n")
        if self._ended:
            return
        if len(self._over) < self._choices:  # without [DONE], what is missing is lost
            yield self._fail(_no_end())
            return
        if self._last is not None:
            yield await self._completed(self._last)
        yield self._end()

    def _pass(self, data: bytes) -> bytes:
        data = self._rest + data if self._rest else data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n")
        if end < 0:
            self._rest = data
            if len(data) > MAX_EVENT_BYTES:
                return self._fail(Refusal(502, f"upstream: one event has over {MAX_EVENT_BYTES} bytes", code=BAD))
            return b""
        self._rest = data[end + 2 :]
        whole = data[:end].split(b"\n\n")
        return b"".join([self._event(one + b"\n\n") for one in whole if one])

    def _event(self, one: bytes) -> bytes:
        if self._ended:
            return b""
        if self._shape is not None and self._shape.fits(one):
            self._shapes = SHAPES
            return self._keep(one)
        data = data_of(one)
        if not data:
            return b"" if one.startswith(b"data:") else one
        if data == END:
            if self._last is not None:
                return b""
            if not self._begun:
                return self._fail(_no_end())
            if missing := self._choices - len(self._over):
                some = f"the upstream did not say why {missing} of {self._choices} answers ended"
                self._outcome.weaker += (NO_REASON if self._choices == 1 else some,)
            return self._end()
        found = object_in(data)
        if found is None:
            return self._fail(self._bad("what is no JSON object", data))
        if fails(found):
            return self._fail(refused(200, found, self._key))
        choices = choices_of(found)
        if choices is None:
            return self._fail(self._bad("choices not of OpenAI's shape", data))
        if choices and self._passes(found, choices):
            self._shape = shape_of(one) if self._shapes else None
            self._shapes = max(0, self._shapes - 1)
            return self._keep(one)
        return self._chunk(found, choices)

    def _passes(self, found: dict[str, Any], choices: list[dict[str, Any]]) -> bool:
        """Whether a chunk passes as the bytes it is."""
        if not self._begun or self._thinking is not None or found.get("usage"):
            return False
        return not any(one.get("finish_reason") for one in choices)

    def _bad(self, what: str, data: bytes) -> Refusal:
        return Refusal(502, f"upstream: sends {what}: {beginning(data, 60, self._key)!r}", code=BAD)

    def _fail(self, refusal: Refusal) -> bytes:
        """The stream's last event, where what the upstream sends is no answer."""
        self._ended = self._failed = True
        self._outcome.status, self._outcome.error = "error", refusal.message
        return event(refusal.body())

    def _chunk(self, found: dict[str, Any], choices: list[dict[str, Any]]) -> bytes:
        self._counted = counted(found.pop("usage", None)) or self._counted
        if not choices and (self._stamp is not None or "choices" not in found):
            return b""  # the upstream's usage chunk (ours is sent at the end), or what is none of a completion's
        for choice in choices:
            if choice.get("finish_reason"):
                self._outcome.finish = str(choice["finish_reason"])
                index = choice.get("index")
                self._over.add(index if isinstance(index, int) else 0)
        first = self._stamp is None
        if not self._begun:  # Azure's first chunk has no choices, and no name of its own
            self._outcome.first_ms = self._elapsed_ms()
            self._stamp = {name: found.get(name) for name in ("id", "object", "created", "model")}
            self._begun = bool(choices)
        if first:
            found["apportion"] = {**self._decided.public(), **self._weaker()}
        found = self._apart(found)
        if self.second_turn is None or not any(one.get("finish_reason") for one in choices):
            return self._keep(event(found), found)
        self._last = {**found, "choices": [{**one, "delta": {}} for one in choices]}
        rest = {**found, "choices": [{**one, "finish_reason": None} for one in choices]}
        return self._keep(event(rest), rest)

    def _keep(self, one: bytes, found: dict[str, Any] | None = None) -> bytes:
        """A chunk that goes to the client, counted; `found` is what it says, where it has been read."""
        self._pieces += 1
        if self._keeps_text or self.second_turn is not None:
            self._said.add(found or object_in(data_of(one)) or {})
        return one

    async def _completed(self, last: dict[str, Any]) -> bytes:
        """What a second turn says, if one is made, and the chunk with the end."""
        assert self.second_turn is not None
        added = await self.second_turn.after(self._said.texts, self._outcome.finish, self._counted)
        if added is None:
            return event({**last, **self._news()})
        self._second, self._outcome.finish = added.spent, added.finish
        more = [{**one, "delta": {"content": f"\n\n{added.text}"}, "finish_reason": None} for one in last["choices"]]
        self._said.add({"choices": more})
        ends = [{**one, "finish_reason": added.finish} for one in last["choices"]]
        return event({**last, "choices": more}) + event({**last, "choices": ends, **self._news()})

    def _apart(self, found: dict[str, Any]) -> dict[str, Any]:
        """The chunk with its thinking apart."""
        if self._thinking is not None:
            found = self._thinking.moved(found)
            if self._thinking.over:
                self._thinking = None
        return found

    def settle(self) -> None:
        """Note what has been spent and said so far: also of a stream that was left."""
        if self._keeps_text and self._begun:
            self._outcome.text = self._said.texts["content"]
        self._outcome.spent = (self._counted or Spent(0, self._pieces, measured=False)).plus(self._second)

    def _end(self) -> bytes:
        """The usage chunk if it is wanted, and the end."""
        self._ended = True
        if self._counted is None:
            self._outcome.weaker += (f"tokens are counted by events, {UNTOLD}",)
        self.settle()
        if not self._include_usage or self._stamp is None:
            return DONE
        used = usage(self._decided, self._outcome.spent)
        return event({**self._stamp, "choices": [], "usage": used, **self._news()}) + DONE

    def _weaker(self) -> dict[str, list[str]]:
        self._told = self._outcome.weaker
        return {"weaker": [*self._decided.weaker, *self._told]}

    def _news(self) -> dict[str, Any]:
        """The field of a later chunk: all that is weaker, where more is since it was last told."""
        return {"apportion": self._weaker()} if self._outcome.weaker != self._told else {}


def _no_end() -> Refusal:
    return Refusal(502, "upstream: the stream ended without its end", code="upstream_broke_off")


class _Said:
    """What the first choice says and thinks, each in one piece; of very much the beginning.

    >>> said = _Said()
    >>> for one in ("Be", "rn"):
    ...     said.add({"choices": [{"index": 0, "delta": {"content": one}}, {"index": 1, "delta": {"content": "Ulm"}}]})
    >>> said.texts
    {'content': 'Bern', 'reasoning_content': ''}
    """

    def __init__(self) -> None:
        self._pieces: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        self._room = MAX_KEPT_CHARS

    def add(self, found: Mapping[str, Any]) -> None:
        """What a chunk says."""
        for choice in found.get("choices") or ():
            delta = choice.get("delta") or {}
            for name, pieces in self._pieces.items():
                text = delta.get(name)
                if self._room and isinstance(text, str) and not choice.get("index"):
                    pieces.append(text[: self._room])
                    self._room -= len(pieces[-1])

    @property
    def texts(self) -> dict[str, str]:
        """By the names of a message."""
        return {name: "".join(pieces) for name, pieces in self._pieces.items()}
