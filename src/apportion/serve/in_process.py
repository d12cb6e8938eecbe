"""A backend that is a model in this process: requests that wait at the same time are decoded together.

The model says no token before an answer is whole, so its streams come in one piece.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from apportion.core.errors import ApportionError, PromptTooLongError
from apportion.serve.asking import DRAWING
from apportion.serve.backend import Abilities, Body
from apportion.serve.chat_request import part_types, text_of
from apportion.serve.events import as_events, finish_reason
from apportion.serve.refusal import Refusal
from apportion.serve.routing import LLM, Completion, Request

GATHER_S = 0.003  # how long the first of a batch waits for others
DEFAULT_TOKENS = 512
_READ = (
    "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "seed",
    "stop", "chat_template_kwargs",
)  # fmt: skip
_WORDLESS = (  # they change no word of an answer
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "cache_prompt", "keep_alive",
)  # fmt: skip
_IDLE: Mapping[str, tuple[object, ...]] = {  # values that ask for nothing, beside the empty ones
    "n": (1,), "repetition_penalty": (1,), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
}  # fmt: skip
_SEEDS = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    answered: "asyncio.Future[Completion]"


class InProcess:
    """A model as a backend; see the protocol `Backend`.

    Args:
        llm: decodes lists of requests. together: requests in one list at most, which are all answered at its end.
    """

    def __init__(self, llm: LLM, *, together: int) -> None:
        self._llm, self._together = llm, max(1, together)
        self.abilities: Abilities | None = Abilities(llm.name, llm.model, llm.has_logprobs, llm.logprobs_reason)
        self.trouble = self.key = ""
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take requests."""
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop; what is being decoded is finished first."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._llm.close()

    async def check(self) -> bool:
        """Whether requests are taken."""
        return self._worker is not None and not self._worker.done()

    async def chat(self, body: Body) -> dict[str, Any]:
        """One completion, decoded beside others."""
        return self._reply(await self._completed(read_request(body)))

    async def measured(self, body: Body, request: Request) -> Completion:
        """The same as the model tells it: in OpenAI's words its log-probabilities would need tokens."""
        asked = read_request({name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs")})
        return await self._completed(replace(asked, logprobs=True))

    async def _completed(self, request: Request) -> Completion:
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        completion = await waiting.answered
        if completion.cut_prompt_tokens:  # whoever asked knows better what to leave out
            raise Refusal(400, "messages: exceed the model's context", code="context_length_exceeded", param="messages")
        return completion

    @asynccontextmanager
    async def stream(self, body: Body) -> AsyncIterator[AsyncIterator[bytes]]:
        """The events of a completion, all at its end."""
        yield as_events(await self.chat(body))

    async def forward(self, path: str, body: Body) -> bytes:
        """A model in this process has no other endpoint."""
        raise Refusal(404, f"/v1{path}: a model in this process answers chat completions only", code="unknown_url")

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(GATHER_S)
            while len(batch) < self._together and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [one for one in batch if not one.answered.cancelled()]  # their clients have gone
            if batch:
                await self._decode(batch)

    async def _decode(self, batch: list[_Waiting]) -> None:
        """Answer a batch; where it fails, one by one, so that one bad request spoils no other."""
        try:
            found = await asyncio.to_thread(self._llm.complete, [one.request for one in batch])
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._decode([one])
            elif not batch[0].answered.done():
                batch[0].answered.set_exception(_refused(error))
            return
        for one, completion in zip(batch, found, strict=True):
            if not one.answered.done():
                one.answered.set_result(completion)

    def _reply(self, completion: Completion) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": completion.text}
        if completion.thinking_text:
            message["reasoning_content"] = completion.thinking_text
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish_reason(completion.finish)}
        prompt, new = completion.prompt_tokens, completion.completion_tokens
        return {
            "id": f"chatcmpl-{time.time_ns():x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._llm.name,
            "choices": [choice],
            "usage": {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new},
        }


def read_request(body: Body) -> Request:
    """The body as a request to a model.

    Raises:
        Refusal: it asks for what a model in this process cannot do.

    >>> body = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
    >>> read_request(body).system, read_request(body).user
    ('Be brief.', 'Hi')
    """
    if asked := _not_known(body):
        raise Refusal(
            400,
            f"{asked}: a model in this process does not know it; leave it out, or serve the model by vLLM or llama.cpp",
            param=asked,
        )
    messages = body["messages"]
    if any(part_types(one) - {"text"} for one in messages):
        raise Refusal(400, "messages: a model in this process reads text only", param="messages")
    system = "\n\n".join(text_of(one) for one in messages if one["role"] in ("system", "developer"))
    turns = [(one["role"], text_of(one)) for one in messages if one["role"] not in ("system", "developer")]
    for text in (system, *(said for _, said in turns)):
        _check_characters(text)
    pairs, user = _shown(turns)
    return Request(
        user=user,
        system=system,
        examples=pairs,
        stop=_stops(body.get("stop")),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_TOKENS,
        thinking=_switch(body.get("chat_template_kwargs")),
        temperature=float(body.get("temperature") or 0.0),
        seed=_seed(body.get("seed")),
        whole=True,
    )


def _not_known(body: Body) -> str:
    """The first field that asks for what a model in this process cannot do; nothing where none does.

    >>> _not_known({"guided_choice": ["a"]}), _not_known({"tools": [], "top_p": 1, "presence_penalty": 0, "user": "x"})
    ('guided_choice', '')
    >>> _not_known({"top_p": 0.5, "temperature": 1}), _not_known({"top_p": 0.5, "temperature": 0})
    ('top_p', '')
    """
    for name, value in body.items():
        if name in _READ or name in _WORDLESS or value is None:
            continue
        if name in DRAWING:  # of greedy answers they say nothing
            asks = value not in DRAWING[name] and body.get("temperature") != 0
        else:
            asks = bool(value) and value not in _IDLE.get(name, ())
        if asks:
            return name
    return ""


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        said = f"messages: character {error.start} of a text is half of a surrogate pair; send whole characters"
        raise Refusal(400, said, param="messages") from error


def _seed(seed: object) -> int:
    """The body's `seed`; without one another each time, so that what is asked for twice is drawn twice."""
    if seed is None:
        return secrets.randbits(63)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed not in _SEEDS:
        raise Refusal(400, f"seed: is {repr(seed)[:60]}, expected a whole number of 64 bits", param="seed")
    return seed


def _switch(options: object) -> bool | None:
    """Whether to think, as `chat_template_kwargs` has it."""
    if options is None:
        return None
    switch = options.get("enable_thinking") if isinstance(options, dict) else options
    if not isinstance(options, dict) or set(options) - {"enable_thinking"} or not isinstance(switch, bool | None):
        said = f"chat_template_kwargs: is {repr(options)[:60]}, expected an object of enable_thinking, true or false"
        raise Refusal(400, said, param="chat_template_kwargs")
    return switch


def _shown(turns: list[tuple[str, str]]) -> tuple[tuple[tuple[str, str], ...], str]:
    """A conversation as the model is shown it: pairs of turns and what the user says last; all as text where turns do
    not alternate, or where the last is not the user's.

    >>> _shown([("user", "a"), ("assistant", "b"), ("user", "c")]), _shown([("user", "a"), ("user", "b")])
    (((('a', 'b'),), 'c'), ((), 'User: a\\n\\nb'))
    >>> _shown([("user", "a"), ("assistant", "b")])
    ((), 'User: a\\n\\nAssistant: b')
    """
    roles, texts = [role for role, _ in turns], [text for _, text in turns]
    if roles == [*["user", "assistant"] * (len(turns) // 2), "user"]:
        return tuple(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1]
    said = [f"{role.capitalize()}: {text}" for role, text in turns]
    return (), "\n\n".join([*said[:-1], texts[-1] if roles[-1] == "user" else said[-1]])


def _stops(stop: object) -> tuple[str, ...]:
    """The body's `stop`, which may be one text or several; an empty one ends nothing."""
    listed = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise Refusal(400, f"stop: is {repr(stop)[:60]}, expected a text or a list of texts", param="stop")
    return tuple(one for one in listed if one)


def _refused(error: Exception) -> Refusal:
    if isinstance(error, ApportionError):
        code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else None
        return Refusal(400, error.problem, code=code)
    return Refusal(500, f"the model failed: {type(error).__name__}", code="model_failed")
