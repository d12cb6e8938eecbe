"""The application: paths to functions. No globals, no work at import, no work before it is started."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from apportion.serve import dashboard, listing
from apportion.serve.admission import Admission
from apportion.serve.backend import Backend
from apportion.serve.chat import chat_completions
from apportion.serve.following import follow
from apportion.serve.incoming import CLOSED
from apportion.serve.keys import Keys
from apportion.serve.noted import Noted
from apportion.serve.passing import completions, embeddings, responses
from apportion.serve.refusal import Refusal, our_fault
from apportion.serve.routing import Routing
from apportion.serve.schema import describe
from apportion.serve.serving import Serving
from apportion.serve.settings import Settings

log = logging.getLogger("apportion.serve")
Handler = Callable[[Request, Serving], Awaitable[Response]]


def create_app(routing: Routing, backend: Backend, settings: Settings | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        routing: what decides. backend: what answers; it is started and closed with the application.
        settings: limits, times, keys and the decision log; the defaults are those of the command.

    Returns:
        An application whose `state.serving` holds what it runs on.

    Raises:
        ArtifactError: the decision log cannot be opened.
    """
    serving = Serving(routing, backend, settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await backend.start()
        followed = serving.settings.router
        following = asyncio.create_task(follow(serving, followed)) if followed else None
        try:
            yield
        finally:
            if following is not None:
                following.cancel()
            await serving.close()
            await backend.close()

    app = FastAPI(title="Apportion", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.serving = serving
    for method, path, handler in _PATHS:
        endpoint = _endpoint(handler, serving)
        app.add_api_route(path, endpoint, methods=[method], **describe(path))
        if method == "GET":  # whoever looks whether it is there may ask for the head alone
            app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    _add_errors(app)
    app.add_middleware(Admission, serving=serving)
    app.add_middleware(Keys, keys=serving.settings.keys)
    app.add_middleware(Noted, serving=serving)
    return app


_PATHS: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/embeddings", embeddings),
    ("POST", "/v1/responses", responses),
    ("GET", "/v1/models", listing.models),
    ("GET", "/v1/models/{name:path}", listing.model),
    ("GET", "/", dashboard.page),
    ("GET", "/dashboard/data", dashboard.data),
    ("GET", "/dashboard/frontier", dashboard.frontier),
    ("GET", "/health", listing.health),
    ("GET", "/ready", listing.ready),
    ("GET", "/metrics", listing.metrics),
    ("GET", "/decisions", listing.decisions),
    ("GET", "/decisions/{decision_id}", listing.decision),
    ("POST", "/decisions/{decision_id}/feedback", listing.feedback),
)


def _endpoint(handler: Handler, serving: Serving) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request, serving)
        except Refusal as refusal:
            return refusal.response()
        except ClientDisconnect:
            return Response(status_code=CLOSED)
        except Exception:
            log.exception("a fault of ours at %s", request.url.path)
            return our_fault().response()

    endpoint.__name__ = handler.__name__
    return endpoint


def _add_errors(app: FastAPI) -> None:
    """OpenAI's error object for what the framework itself refuses."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refusal = Refusal(error.status_code, f"{error.detail}; the paths are those of OpenAI's API under /v1")
        response = refusal.response()
        response.headers.update(error.headers or {})  # what a path allows
        return response

    app.add_exception_handler(HTTPException, refused)
