"""`POST /v1/chat/completions`: read, decide, answer, note."""

import time

from starlette.requests import Request
from starlette.responses import Response

from apportion.serve.chat_request import parse_chat
from apportion.serve.controls import read_controls
from apportion.serve.exchange import Exchange
from apportion.serve.incoming import read_body, until_gone
from apportion.serve.serving import Serving


async def chat_completions(request: Request, serving: Serving) -> Response:
    """Answer one chat request.

    Raises:
        Refusal: the body, a control or the upstream.
    """
    started = time.perf_counter()
    chat = parse_chat(await read_body(request, serving))
    controls = await serving.controls_of(chat.model)
    controls = read_controls(controls, request.headers, chat.controls)
    exchange = Exchange(serving, chat, controls, started)
    if chat.stream:
        return await exchange.streamed(request)
    return await until_gone(request, exchange.plain())
