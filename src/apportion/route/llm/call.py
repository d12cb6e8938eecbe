"""One call to a server, repeated while that can help; failures told apart by what a user must do."""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from apportion.core.errors import ServiceError

T = TypeVar("T")
MAX_WAIT_S = 30.0
MAX_MESSAGE_CHARS = 300
_TOO_LONG = re.compile(
    r"context.{0,40}(length|window|size)|(length|size).{0,40}context"
    r"|too (long|many tokens)|maximum.{0,20}token",
    re.IGNORECASE | re.DOTALL,
)
_AGAIN = (408, 409, 425, 429)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a call is repeated (pauses double from `backoff_s`), and what must not be shown."""

    retries: int
    backoff_s: float
    secret: str
    url: str


class BadAnswerError(Exception):
    """The server answered 200 with something that is no completion."""


class Failure(Exception):  # noqa: N818  (becomes a ServiceError or another attempt; never seen by users)
    """A call that failed for good.

    Attributes:
        status: HTTP status, or None when there was no answer. attempts: calls made.
        prompt_too_long: the server says that the prompt exceeds its context.
    """

    def __init__(self, message: str, remedy: str, status: int | None, attempts: int, url: str) -> None:
        super().__init__(message)
        self.message, self.remedy, self.status, self.attempts, self.url = (
            message,
            remedy,
            status,
            attempts,
            url,
        )

    @property
    def prompt_too_long(self) -> bool:
        return self.status in (400, 413, 422) and bool(_TOO_LONG.search(self.message))

    @property
    def refused_request(self) -> bool:
        return self.status in (400, 422, 500, 501)

    def as_service_error(self) -> ServiceError:
        times = f" (after {self.attempts} attempts)" if self.attempts > 1 else ""
        return ServiceError(f"{self.url}: {self.message}{times}", self.remedy)


def call_with_retries(call: Callable[[], T], retry: Retry) -> tuple[T, int]:
    """The result and the number of calls it took.

    Repeated: no connection, timeouts, 408, 409, 425, 429, 5xx, and answers that are no completion. A pause
    that the server asks for (Retry-After, at most 30 s) is kept.

    Raises:
        Failure: it still fails, or another call could not help (400, 401, 403, 404).
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

    again, wait_s, status = True, 0.0, None
    if isinstance(error, openai.APITimeoutError):
        message, remedy = "did not answer in time", "raise --timeout, or lower --concurrency"
    elif isinstance(error, openai.APIConnectionError):
        message = f"cannot be reached: {error.__cause__ or error}"
        remedy = "start the server, or correct the URL; finished work is kept and --resume continues it"
    elif isinstance(error, openai.APIStatusError):
        status = error.status_code
        again = status in _AGAIN or status >= 500
        message, remedy = _of_status(status, error)
        wait_s = _retry_after(error.response.headers.get("retry-after"))
    elif isinstance(error, BadAnswerError):
        message, remedy = str(error), "check that the URL is an OpenAI-compatible server (usually .../v1)"
    else:
        raise error
    return Failure(_clean(message, retry.secret), remedy, status, attempt, retry.url), again, wait_s


def _of_status(status: int, error: Exception) -> tuple[str, str]:
    said = str(getattr(error, "message", "") or error)
    if status in (401, 403):
        return f"refuses the key (HTTP {status}): {said}", "set APPORTION_API_KEY to a key that it accepts"
    if status == 404:
        return f"knows no such path or model (HTTP 404): {said}", "check the URL (usually .../v1) and --model"
    if 300 <= status < 400:
        return f"redirects elsewhere (HTTP {status}), which is not followed", "give the final URL"
    if status == 429:
        return f"is asked too often (HTTP 429): {said}", "lower --concurrency"
    return f"answers HTTP {status}: {said}", "see the server's own log"


def _retry_after(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0


def _clean(message: str, secret: str) -> str:
    """One bounded line without the key."""
    if len(secret) > 4:
        message = message.replace(secret, "[key]")
    message = " ".join(message.split())
    return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "..."
