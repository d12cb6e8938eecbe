"""What a server says of itself: models, health, metrics, decisions; and what people thought of an answer."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from apportion.core.errors import ArtifactError
from apportion.serve.chat_request import parse_object
from apportion.serve.incoming import read_body
from apportion.serve.refusal import Refusal, json_response
from apportion.serve.serving import Serving

MAX_COMMENT_CHARS = 2000
Found = TypeVar("Found")


async def models(request: Request, serving: Serving) -> Response:
    """Our aliases and the upstream's own name, as OpenAI lists models."""
    await serving.reached()
    return json_response({"object": "list", "data": [_model(name) for name in serving.named]})


async def model(request: Request, serving: Serving) -> Response:
    """One of them."""
    name = request.path_params["name"]
    await serving.controls_of(name)
    return json_response(_model(name))


async def health(request: Request, serving: Serving) -> Response:
    """Whether the process answers at all."""
    return json_response({"status": "ok"})


async def ready(request: Request, serving: Serving) -> Response:
    """Whether requests would be answered: 200, or 503 with the reason."""
    reached = await serving.backend.check()
    trouble = "shutting down" if serving.draining else "" if reached else serving.backend.trouble or "not reached"
    found: dict[str, Any] = {"ready": not trouble, "upstream": serving.backend.trouble or "ok"}
    found["decision_log"] = serving.log.trouble or "ok"
    abilities = serving.backend.abilities
    if abilities:
        found |= {"model": abilities.model, "drafts": abilities.logprobs, "drafts_reason": abilities.logprobs_reason}
    return json_response({**found, "reason": trouble}, 503 if trouble else 200)


async def metrics(request: Request, serving: Serving) -> Response:
    """Prometheus's format."""
    return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def decisions(request: Request, serving: Serving) -> Response:
    """The last decisions, the newest first."""
    asked = request.query_params.get("limit", "100")
    if not asked.isdecimal() or not 1 <= int(asked[:6]) <= 1000:
        raise Refusal(400, f"limit: is {asked[:20]!r}, expected 1 to 1000", param="limit")
    return json_response({"data": serving.log.recent(int(asked[:6]))})


async def decision(request: Request, serving: Serving) -> Response:
    """One decision, whole."""
    found = await _asked_of_log(serving.log.find, request.path_params["decision_id"])
    if found is None:
        raise _unknown(request)
    return json_response(found)


async def feedback(request: Request, serving: Serving) -> Response:
    """Note a score from 0 (wrong) to 1 (right) for an answer; the last one counts."""
    body = parse_object(await read_body(request, serving))
    score, comment = body.get("score"), body.get("comment")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise Refusal(
            400, f"score: is {repr(score)[:40]}, expected a number from 0 (wrong) to 1 (right)", param="score"
        )
    if comment is not None and (not isinstance(comment, str) or len(comment) > MAX_COMMENT_CHARS):
        raise Refusal(400, f"comment: expected text of at most {MAX_COMMENT_CHARS} characters", param="comment")
    wanted = request.path_params["decision_id"]
    if not await _asked_of_log(serving.log.score, wanted, float(score), comment):
        raise _unknown(request)
    return json_response({"id": wanted, "score": float(score)})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "apportion"}


async def _asked_of_log(ask: Callable[..., Found], *what: object) -> Found:
    """What the log answers, which may have to read its file."""
    try:
        return await asyncio.to_thread(ask, *what)
    except ArtifactError as error:
        raise Refusal(503, "the file of decisions cannot be read", code="decision_log_unreadable") from error


def _unknown(request: Request) -> Refusal:
    wanted = request.path_params["decision_id"]
    return Refusal(404, f"decision {wanted[:60]!r}: is in neither memory nor log", code="decision_not_found")
