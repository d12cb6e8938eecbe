"""What OpenAPI says of the bodies, which are read by hand: enough for clients, generators and fuzzers."""

from typing import Any

from apportion.serve.chat_request import ROLES
from apportion.serve.controls import ROUTES

_PART = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {"type": "string", "enum": ["text", "image_url"]}, "text": {"type": "string"}},
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": list(ROLES)},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}, {"type": "null"}]},
    },
}
_WEIGHT = {"type": "number", "minimum": 0}
_CONTROLS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "route": {"type": "string", "enum": list(ROUTES)},
        "token_weight": _WEIGHT,
        "price_weight": _WEIGHT,
        "latency_weight": _WEIGHT,
    },
}
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": {"type": "string"},
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "stream": {"type": "boolean"},
            "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
            "max_tokens": {"type": "integer", "minimum": 1},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "n": {"type": "integer", "minimum": 1},
            "apportion": _CONTROLS,
        },
    },
    "/v1/completions": {"type": "object", "properties": {"prompt": {"type": "string"}}},
    "/v1/embeddings": {"type": "object", "properties": {"input": {"type": "string"}}},
    "/decisions/{decision_id}/feedback": {
        "type": "object",
        "required": ["score"],
        "properties": {"score": {"type": "number", "minimum": 0, "maximum": 1}, "comment": {"type": "string"}},
    },
}


def describe(path: str) -> dict[str, Any]:
    """What `add_api_route` is told of a path."""
    content = {"application/json": {"schema": _BODIES[path]}} if path in _BODIES else None
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}} if content else None}
