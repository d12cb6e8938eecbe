"""Any server that speaks OpenAI's chat completions: retries, timeouts, concurrency, log-probabilities.

Contacts the given URL only (redirects are refused). The key comes from an argument or the environment and is
in no message, file or identity.
"""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from apportion.core.errors import InputError
from apportion.route.llm.call import BadAnswerError, Failure, Retry, call_with_retries
from apportion.route.llm.cut import cut
from apportion.route.llm.deadline import http_client
from apportion.route.llm.habits import PROBE, REFUSING, Habits, after_refusal, body_of
from apportion.route.llm.protocol import THINK_END, THINK_START, Completion, Request
from apportion.route.llm.response import decoded, parse_completion
from apportion.route.llm.shortened import Shortened

KEY_VARIABLES = ("APPORTION_API_KEY", "OPENAI_API_KEY")
MAX_CUTS = 8
MAX_ADAPTATIONS = 10


class OpenAILLM:
    """A language model behind an OpenAI-compatible server; see the protocol `LLM`.

    Args:
        base_url: such as http://localhost:8000/v1.
        model: the server's name for the model; None when it serves just one.
        api_key: None takes APPORTION_API_KEY or OPENAI_API_KEY, else sends the word "none".
        concurrency: calls in flight at once. timeout_s: for one call in all. retries: after the first call.

    Attributes:
        habits: what the server takes; learned from what it refuses, here and later.

    Raises:
        InputError: settings out of range, or a model that must be named.
        ServiceError: the server is down or refuses the key. It is asked twice here: for its models when no
            name is given, and for one short completion with everything that may be asked for, again for each
            part that it refuses.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        retries: int = 3,
        backoff_s: float = 0.5,
    ) -> None:
        _check(base_url, concurrency, timeout_s, retries)
        self._key = api_key or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "none")
        self._client = _client(base_url, self._key, timeout_s)
        self.base_url, self.concurrency, self.batch_size = base_url, concurrency, 1
        self._retry = Retry(retries, backoff_s, secret=self._key, url=base_url)
        self._slots = threading.BoundedSemaphore(concurrency)
        self.habits = Habits()
        self._opens_thinking = False  # its template ends with <think>, so answers begin inside of the block
        self._shortened = Shortened()
        try:
            self.name = model or self._only_model()
            self.model = f"server:{self.name}"
            self.has_logprobs, self.logprobs_reason = self._probe()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in order, up to `concurrency` calls at once.

        Raises:
            ServiceError: a call failed after its retries; what the server said is in the message.
        """
        if len(requests) == 1:
            return [self._complete_one(requests[0])]
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(self._complete_one, requests))

    def _complete_one(self, request: Request) -> Completion:
        """One completion; where the server finds the prompt too long, a shorter one, saying what was cut."""
        asked = replace(request, logprobs=request.logprobs and self.has_logprobs)
        characters, attempts = 0, 0
        for number in range(1, MAX_CUTS + 1):
            shorter = cut(asked, characters)
            try:
                with self._slots:
                    completion, tried = self._adapted(shorter)
            except Failure as failure:
                attempts += failure.attempts
                if not failure.prompt_too_long or number == MAX_CUTS:
                    raise failure.as_service_error() from failure
                characters += max(1, (len(asked.user) - characters) // 3)
                continue
            return self._with_history(completion, shorter, characters, attempts + tried)
        raise AssertionError("the loop returns or raises")

    def _with_history(self, completion: Completion, sent: Request, characters: int, attempts: int) -> Completion:
        """The completion with what was cut here, or by the server without a word."""
        cut_tokens = _cut_tokens(characters, len(sent.user), completion.prompt_tokens)
        silently = self._shortened.tokens(sent, completion)
        weaker = (*completion.weaker, *self.habits.weaker(sent))
        return replace(completion, attempts=attempts, cut_prompt_tokens=cut_tokens + silently, weaker=weaker)

    def _adapted(self, request: Request) -> tuple[Completion, int]:
        """One completion, sent again without a part that the server refuses; the part stays away from then on."""
        for _ in range(MAX_ADAPTATIONS):
            sent = self.habits
            try:
                return self._attempt(request, sent)
            except Failure as failure:
                other = None if failure.prompt_too_long else _after(sent, failure)
                if other is None:
                    raise
                self.habits = other
        raise AssertionError("there are fewer habits than this")

    def _attempt(self, request: Request, habits: Habits) -> tuple[Completion, int]:
        options = body_of(request, self.name, habits)
        create = self._client.chat.completions.with_raw_response.create

        def call() -> Completion:
            found = parse_completion(lambda: create(**options), request, opened=self._opens_thinking)
            if found.thinking_text and self._begins_inside(found):
                self._opens_thinking = True
            return found

        return call_with_retries(call, self._retry)

    def _begins_inside(self, found: Completion) -> bool:
        """Whether the answer closed a thinking block that it did not open."""
        return found.raw_text.find(THINK_END) >= 0 and THINK_START not in found.raw_text

    def _only_model(self) -> str:
        def listed() -> list[str]:
            body = decoded(self._client.models.with_raw_response.list().http_response.text)
            models = body.get("data") if isinstance(body, dict) else None
            if not isinstance(models, list) or not all(isinstance(one, dict) and "id" in one for one in models):
                raise BadAnswerError(f"answers /models with what is no list of models: {str(body)[:80]!r}")
            return [str(one["id"]) for one in models]

        try:
            names, _ = call_with_retries(listed, self._retry)
        except Failure as failure:
            raise failure.as_service_error() from failure
        if len(names) != 1:
            shown = ", ".join(names[:20]) or "none"
            raise InputError(f"--model is not given and {self.base_url} lists {len(names)}: {shown}", "name one")
        return names[0]

    def _probe(self) -> tuple[bool, str]:
        """Find out by one short completion whether log-probabilities come back, and what the server refuses.

        A server may refuse parts of the request, or answer 200 and leave log-probabilities out.
        """
        refusal = ""
        for _ in range(MAX_ADAPTATIONS):
            sent = self.habits
            try:
                completion, _ = self._attempt(PROBE, sent)
            except Failure as failure:
                other = _after(sent, failure, blind=True)
                if other is None:
                    raise failure.as_service_error() from failure
                refusal = failure.message if sent.logprobs and not other.logprobs else refusal
                self.habits = other
                continue
            if not sent.logprobs:
                return False, f"the server refuses them: {refusal}"
            if completion.token_logprobs is None:
                return False, "the server answers without them"
            return True, "the server returned them when probed"
        raise AssertionError("there are fewer habits than this")


def _after(habits: Habits, failure: Failure, *, blind: bool = False) -> Habits | None:
    """The habits that a refusal shows; None for failures of another kind."""
    return after_refusal(habits, failure.said, blind=blind) if failure.status in REFUSING else None


def _check(base_url: str, concurrency: int, timeout_s: float, retries: int) -> None:
    if not base_url.startswith(("http://", "https://")):
        raise InputError(f"--llm {base_url}: expected http://host:port/v1 or https://...")
    if not 1 <= concurrency <= 1024:
        raise InputError(f"--concurrency {concurrency}: expected 1 to 1024")
    if not 0 < timeout_s <= 86_400:
        raise InputError(f"--timeout {timeout_s}: expected seconds above 0, at most 86,400")
    if not 0 <= retries <= 20:
        raise InputError(f"--retries {retries}: expected 0 to 20")


def _client(base_url: str, key: str, timeout_s: float) -> Any:
    import openai

    unset: Any = openai.Omit()
    return openai.OpenAI(
        base_url=base_url,
        api_key=key,
        timeout=timeout_s,
        max_retries=0,
        default_headers={"OpenAI-Organization": unset, "OpenAI-Project": unset},
        http_client=http_client(base_url, timeout_s),
    )


def _cut_tokens(cut_characters: int, kept_characters: int, prompt_tokens: int) -> int:
    """Tokens that were cut, at the rate of the tokens that were kept."""
    if not cut_characters:
        return 0
    return max(1, round(prompt_tokens * cut_characters / max(kept_characters, 1)))
