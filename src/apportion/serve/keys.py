"""Who may ask: API keys, compared in constant time and never written anywhere. ASGI around the application."""

import hmac
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from apportion.serve.refusal import Refusal

OPEN = ("/", "/health", "/ready", "/metrics")


class Keys:
    """Refuses every path but the open ones without one of the keys; without keys it lets everybody in."""

    def __init__(self, app: ASGIApp, *, keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._digests or scope["type"] != "http" or scope["path"] in OPEN:
            return await self._app(scope, receive, send)
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, given = header.partition(b" ")
        if kind.lower() != b"bearer" or not given.strip():
            refusal = Refusal(401, "Authorization: is missing, expected 'Bearer <key>'", code="missing_api_key")
        elif self._knows(given.strip()):
            return await self._app(scope, receive, send)
        else:
            refusal = Refusal(401, "Authorization: the key is not one of this server's", code="invalid_api_key")
        response = refusal.response()
        response.headers["www-authenticate"] = "Bearer"
        return await response(scope, receive, send)

    def _knows(self, given: bytes) -> bool:
        """Compared by digest with every key, so that neither length nor place shows in the time."""
        digest = sha256(given).digest()
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(found)
