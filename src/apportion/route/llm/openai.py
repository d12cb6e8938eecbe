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
from apportion.route.llm.call import Failure, Retry, call_with_retries
from apportion.route.llm.cut import cut
from apportion.route.llm.protocol import Completion, Request
from apportion.route.llm.response import parse_completion

KEY_VARIABLES = ("APPORTION_API_KEY", "OPENAI_API_KEY")
PROBE = Request("Say hello.", max_tokens=8, thinking=False, logprobs=True)
MAX_CUTS = 8


class OpenAILLM:
    """A language model behind an OpenAI-compatible server; see the protocol `LLM`.

    Args:
        base_url: such as http://localhost:8000/v1.
        model: the server's name for the model; None when it serves just one.
        api_key: None takes APPORTION_API_KEY or OPENAI_API_KEY, else sends the word "none".
        concurrency: calls in flight at once. timeout_s: for one call. retries: after the first call.

    Raises:
        InputError: settings out of range, or a model that must be named.
        ServiceError: the server is down or refuses the key. It is asked twice here: for its models when no
            name is given, and for one short completion with log-probabilities.
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
        try:
            self.name = model or self._only_model()
            self.model = f"server:{self.name}"
            self.has_thinking_switch = True
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
                    completion, tried = self._attempt(shorter)
            except Failure as failure:
                attempts += failure.attempts
                if not failure.prompt_too_long or number == MAX_CUTS:
                    raise failure.as_service_error() from failure
                characters += max(1, (len(asked.user) - characters) // 3)
                continue
            return replace(
                completion,
                attempts=attempts + tried,
                cut_prompt_tokens=_cut_tokens(characters, len(shorter.user), completion.prompt_tokens),
            )
        raise AssertionError("the loop returns or raises")

    def _attempt(self, request: Request) -> tuple[Completion, int]:
        return call_with_retries(lambda: self._call(request), self._retry)

    def _call(self, request: Request) -> Completion:
        messages = [{"role": "user", "content": request.user}]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        options: dict[str, Any] = {"temperature": request.temperature}
        if request.temperature > 0:
            options["seed"] = request.seed
        if request.logprobs:
            options["logprobs"] = True
        if request.thinking is not None and self.has_thinking_switch:
            options["extra_body"] = {"chat_template_kwargs": {"enable_thinking": request.thinking}}
        return parse_completion(
            lambda: self._client.chat.completions.with_raw_response.create(
                model=self.name, messages=messages, max_tokens=request.max_tokens, **options
            ),
            request,
        )

    def _only_model(self) -> str:
        def listed() -> list[str]:
            return [str(model.id) for model in self._client.models.list().data]

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

        A server may refuse log-probabilities or the thinking switch, or answer 200 and leave the former out.
        """
        refusal = ""
        for logprobs, switch in ((True, True), (True, False), (False, True), (False, False)):
            self.has_thinking_switch = switch
            try:
                completion, _ = self._attempt(replace(PROBE, logprobs=logprobs))
            except Failure as failure:
                if not failure.refused_request or not (logprobs or switch):
                    raise failure.as_service_error() from failure
                refusal = refusal or failure.message
                continue
            if not logprobs:
                return False, f"the server refuses them: {refusal}"
            if completion.token_logprobs is None:
                return False, "the server answers without them"
            return True, "the server returned them when probed"
        raise AssertionError("the loop returns or raises")


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
        http_client=openai.DefaultHttpxClient(follow_redirects=False),
    )


def _cut_tokens(cut_characters: int, kept_characters: int, prompt_tokens: int) -> int:
    """Tokens that were cut, at the rate of the tokens that were kept."""
    if not cut_characters:
        return 0
    return max(1, round(prompt_tokens * cut_characters / max(kept_characters, 1)))
