"""One call to a server, repeated while that can help; failures told apart by what a user must do."""

import email.utils
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from apportion.core.errors import ServiceError

T = TypeVar("T")
MAX_WAIT_S = 30.0
MAX_MESSAGE_CHARS = 300
_TOO_LONG = re.compile(
    r"context.{0,40}(length|window|size)|(length|size).{0,40}context"
    r"|too (long|many (input )?tokens)|maximum.{0,20}token|exceed.{0,40}(token|context|n_ctx)"
    r"|inputs`? tokens \+ `?max_new_tokens",
    re.IGNORECASE | re.DOTALL,
)
_NO_CREDIT = re.compile(r"insufficient_quota|exceeded your current quota|credit balance|billing", re.IGNORECASE)
_AGAIN = (408, 409, 425, 429)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a call is repeated (pauses double from `backoff_s`), and what must not be shown."""

    retries: int
    backoff_s: float
    secret: str
    url: str


class BadAnswerError(Exception):
    """The server answered 200 with something that is no completion.

    Args:
        remedy: what to do about it; about the URL unless told otherwise.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy or "check that the URL is an OpenAI-compatible server (usually .../v1)"


class ErrorBodyError(Exception):
    """The server answered 200 with an error in the body; `status` is the code in it, 500 where it has none."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Failure(Exception):  # noqa: N818  (becomes a ServiceError or another attempt; never seen by users)
    """A call that failed for good.

    Attributes:
        status: HTTP status, or None when there was no answer. attempts: calls made.
        prompt_too_long: the server says that the prompt exceeds its context.
        said: the server's own words, for what it refuses.
    """

    def __init__(self, message: str, remedy: str, status: int | None, attempts: int, url: str, said: str = "") -> None:
        super().__init__(message)
        self.message, self.remedy, self.status, self.attempts, self.url, self.said = (
            message,
            remedy,
            status,
            attempts,
            url,
            said,
        )

    @property
    def prompt_too_long(self) -> bool:
        return says_too_long(self.status, self.said)

    def as_service_error(self) -> ServiceError:
        times = f" (after {self.attempts} attempts)" if self.attempts > 1 else ""
        return ServiceError(f"{self.url}: {self.message}{times}", self.remedy)


def says_too_long(status: int | None, said: str) -> bool:
    """Whether an error of a server is about the prompt's length, in the words of any of them.

    >>> says_too_long(400, "This model's maximum context length is 4096 tokens.")  # vLLM, OpenAI
    True
    >>> says_too_long(500, "the request exceeds the available context size")  # llama.cpp
    True
    >>> says_too_long(422, "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9000")  # TGI
    True
    """
    return status in (400, 413, 422, 500) and bool(_TOO_LONG.search(said))


def call_with_retries(call: Callable[[], T], retry: Retry) -> tuple[T, int]:
    """The result and the number of calls it took.

    Repeated: no connection, timeouts, 408, 409, 425, 429, 5xx, and answers that are no completion. A pause
    that the server asks for (Retry-After, retry-after-ms) is kept up to 30 s; a longer one is an error at once.

    Raises:
        Failure: it still fails, or another call could not help (400, 401, 403, 404, no credit, prompt too long).
    """
    for attempt in range(1, retry.retries + 2):
        try:
            return call(), attempt
        except Exception as error:
            failure, again, wait_s = _explain(error, attempt, retry)
            if not again or attempt > retry.retries:
                raise failure from error
        pause = retry.backoff_s * 2 ** (attempt - 1) * (0.75 + random.random() / 2)
        time.sleep(min(MAX_WAIT_S, max(pause, wait_s)))
    raise AssertionError("the loop returns or raises")


def _explain(error: Exception, attempt: int, retry: Retry) -> tuple[Failure, bool, float]:
    """(failure, whether another call may help, seconds the server asks to wait)."""
    import openai

    again, wait_s, status, said = True, 0.0, None, ""
    if isinstance(error, openai.APITimeoutError):
        message, remedy = "did not answer in time", "raise --timeout, or lower --concurrency where the command has it"
    elif isinstance(error, openai.APIConnectionError):
        message = f"cannot be reached: {error.__cause__ or error}"
        remedy = "start the server, or correct the URL; finished work is kept and --resume continues it"
    elif isinstance(error, openai.APIStatusError | ErrorBodyError):
        status = error.status_code if isinstance(error, openai.APIStatusError) else error.status
        said = str(getattr(error, "message", "") or error)
        headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
        wait_s = retry_after_s(headers)
        again = _may_help(status, said, wait_s)
        message, remedy = _of_status(status, said, wait_s)
    elif isinstance(error, BadAnswerError):
        message, remedy = str(error), error.remedy
    else:
        raise error
    cleaned = _clean(message, retry.secret)
    return Failure(cleaned, remedy, status, attempt, retry.url, said), again, wait_s


def _may_help(status: int, said: str, wait_s: float) -> bool:
    hopeless = _NO_CREDIT.search(said) or says_too_long(status, said) or wait_s > MAX_WAIT_S
    return not hopeless and (status in _AGAIN or status >= 500)


def _of_status(status: int, said: str, wait_s: float) -> tuple[str, str]:
    if status in (402, 429) and _NO_CREDIT.search(said):
        return f"has no credit left for this key (HTTP {status}): {said}", "see to the account, then --resume"
    if status in (401, 403):
        return f"refuses the key (HTTP {status}): {said}", "set APPORTION_API_KEY to a key that it accepts"
    if status == 404:
        return f"knows no such path or model (HTTP 404): {said}", "check the URL (usually .../v1) and --model"
    if 300 <= status < 400:
        return f"redirects elsewhere (HTTP {status}), which is not followed", "give the final URL"
    if wait_s > MAX_WAIT_S:
        return f"asks to wait {wait_s:.0f} s (HTTP {status}): {said}", "wait, then run the same command with --resume"
    if status == 429:
        return f"is asked too often (HTTP 429): {said}", "lower --concurrency"
    return f"answers HTTP {status}: {said}", "see the server's own log"


def retry_after_s(headers: Mapping[str, Any]) -> float:
    """Seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` as seconds or as a date; 0 for none.

    >>> retry_after_s({"retry-after": "2"}), retry_after_s({"retry-after-ms": "1500"}), retry_after_s({})
    (2.0, 1.5, 0.0)
    """
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    value = str(headers.get("retry-after") or "0")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _clean(message: str, secret: str) -> str:
    """One bounded line without the key."""
    if len(secret) > 4:
        message = message.replace(secret, "[key]")
    message = " ".join(message.split())
    return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "..."
