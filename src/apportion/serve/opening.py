"""A URL or a model -> the backend that a server runs on."""

import asyncio
from dataclasses import dataclass

from apportion.core.errors import InputError, ServiceError
from apportion.serve.backend import Backend
from apportion.serve.in_process import InProcess
from apportion.serve.routing import LLMSettings, Routing, connect
from apportion.serve.upstream import Address, Upstream


@dataclass(frozen=True, slots=True)
class Opening:
    """Where the model is.

    Attributes:
        llm: URL of a server; None runs `model` in this process. model: with a URL, the server's name for it.
        key: for the server. require_upstream: refuse where it does not answer now.
        batch, device, dtype: of a model in this process.
    """

    llm: str | None = None
    model: str | None = None
    key: str = ""
    timeout_s: float = 300.0
    require_upstream: bool = False
    batch: int = 16
    device: str = "auto"
    dtype: str = "auto"

    def identity(self, backend: Backend) -> str | None:
        """The model as routers know it; None where it is not known yet."""
        if backend.abilities is not None:
            return backend.abilities.identity
        return f"server:{self.model}" if self.llm and self.model else None


def open_backend(opening: Opening) -> Backend:
    """The server or the model.

    Raises:
        InputError: no such model. ServiceError: the server is required and does not answer, or it cannot be used
            however long one waits.
    """
    spec = opening.llm or opening.model or ""
    if not spec.startswith(("http://", "https://")):
        if opening.llm and opening.model:
            raise InputError(
                f"--llm {opening.llm}: is no URL, so --model {opening.model} means nothing", "leave one out"
            )
        settings = LLMSettings(spec, batch_size=opening.batch, device=opening.device, dtype=opening.dtype)
        return InProcess(connect(settings), together=opening.batch)
    upstream = Upstream(Address(spec, opening.model, opening.key, answer_s=opening.timeout_s))
    asyncio.run(_try(upstream, required=opening.require_upstream))
    return upstream


def expect(backend: Backend, routing: Routing) -> None:
    """Have a server that is reached only later compared with the router then."""
    if isinstance(backend, Upstream):
        backend.expected = routing.model


async def _try(upstream: Upstream, *, required: bool) -> None:
    """Find out what the server can do before ours starts; one that is not there is asked again later."""
    await upstream.start()
    await upstream.close()
    if upstream.abilities is None and (required or upstream.lasting):
        raise ServiceError(
            f"--llm {upstream.address.url}: {upstream.trouble}",
            "waiting does not mend this: correct --llm, --model or the key"
            if upstream.lasting
            else "start it, or leave out --require-upstream",
        )
