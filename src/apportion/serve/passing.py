"""Endpoints that are passed on to the upstream unread, and the one that is not there."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from apportion.serve.chat_request import parse_object
from apportion.serve.incoming import read_body, until_gone
from apportion.serve.refusal import Refusal
from apportion.serve.serving import Serving


async def completions(request: Request, serving: Serving) -> Response:
    """`/v1/completions`: a plain prompt is no question in a conversation, so it is not routed."""
    body = parse_object(await read_body(request, serving))
    if body.get("stream"):
        raise Refusal(400, "stream: /v1/completions is not streamed here; use /v1/chat/completions", param="stream")
    return await _passed(request, "/completions", body, serving)


async def embeddings(request: Request, serving: Serving) -> Response:
    """`/v1/embeddings`."""
    return await _passed(request, "/embeddings", parse_object(await read_body(request, serving)), serving)


async def responses(request: Request, serving: Serving) -> Response:
    """`/v1/responses` does not exist here; clients that hear this turn to chat completions."""
    raise Refusal(404, "/v1/responses: is not served here; use /v1/chat/completions", code="unknown_url")


async def _passed(request: Request, path: str, body: Mapping[str, object], serving: Serving) -> Response:
    await serving.reached()
    abilities = serving.backend.abilities
    named = body.get("model")
    if abilities and isinstance(named, str) and named in serving.named:
        body = {**body, "model": abilities.model}
    found = await until_gone(request, serving.backend.forward(path, body))
    return Response(found, media_type="application/json")
