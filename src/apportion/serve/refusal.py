"""What a client is told when a request is not answered: a status, and OpenAI's error object."""

import json
import math
from typing import Any

from starlette.responses import Response

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):  # noqa: N818  (a reply to a client, not a fault of ours)
    """A request that is not answered, in OpenAI's words.

    Args:
        status: HTTP status.
        message: key, value, expectation and remedy in one sentence.
        code: a stable word for programs, such as `model_not_found`. param: the field of the body at fault.
        retry_after_s: when another attempt may help.

    >>> Refusal(404, "model 'x': unknown", code="model_not_found", param="model").body()["error"]["type"]
    'not_found_error'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients read."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The same as an answer."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}
        return json_response(self.body(), self.status, headers)


def our_fault() -> Refusal:
    """What a client is told of an error that nobody foresaw; its traceback is in the log."""
    return Refusal(500, "a fault of this server; its log says more", code="internal_error")


def cut_off() -> Refusal:
    """What a client is told whose answer was not finished when the server had to stop."""
    return Refusal(503, "server: it stops, and this answer was not finished in time; ask again", code="shutting_down",
                   retry_after_s=1.0)  # fmt: skip


def encode(value: object) -> bytes:
    """Compact JSON; lone surrogates, which UTF-8 cannot carry, stay escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON as an answer."""
    return Response(encode(value), status, headers, media_type="application/json")
