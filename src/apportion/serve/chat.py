"""`POST /v1/chat/completions`: read, decide, answer, note."""

import time
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from apportion.serve.chat_request import ChatRequest, parse_chat
from apportion.serve.controls import Controls, aliases, read_controls
from apportion.serve.exchange import Exchange
from apportion.serve.incoming import read_body, until_gone
from apportion.serve.refusal import Refusal
from apportion.serve.serving import Serving


async def chat_completions(request: Request, serving: Serving) -> Response:
    """Answer one chat request.

    Raises:
        Refusal: the body, a control or the upstream.
    """
    started = time.perf_counter()
    chat = parse_chat(await read_body(request, serving))
    controls = controls_of(chat, request.headers, serving)
    exchange = Exchange(serving, chat, controls, started)
    if chat.stream:
        return await exchange.streamed(request)
    return await until_gone(request, exchange.plain())


def controls_of(chat: ChatRequest, headers: Mapping[str, str], serving: Serving) -> Controls:
    """The controls by alias, header and body; the upstream's own name means `auto`."""
    named = aliases(serving.settings.default, timed=serving.routing.timed)
    abilities = serving.backend.abilities
    known = {**named, abilities.model: named["auto"]} if abilities else named
    if chat.model not in known:
        raise Refusal(
            404,
            f"model: {chat.model[:80]!r} is unknown, expected one of {', '.join(known)}",
            code="model_not_found",
            param="model",
        )
    return read_controls(known[chat.model], headers, chat.controls)
