"""What answers: one protocol in OpenAI's own words. Knows no server and no model."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from apportion.serve.routing import Completion, Habits, Request

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Abilities:
    """What was found out about a backend when it was first reached.

    Attributes:
        model: its name for the model. identity: as saved with profiles and routers.
        logprobs: whether drafts can be measured. logprobs_reason: how that is known.
        habits: which parts of a request it takes.
    """

    model: str
    identity: str
    logprobs: bool
    logprobs_reason: str
    habits: Habits = field(default_factory=Habits)


class Backend(Protocol):
    """A model behind a server, or in this process.

    Attributes:
        abilities: None until it has been reached. trouble: why it cannot be used now; empty when it can.
        key: what is sent to it and shown to no client; empty for none.
    """

    abilities: Abilities | None
    trouble: str

    @property
    def key(self) -> str: ...

    async def start(self) -> None:
        """Reach it; a failure is in `trouble`, and later calls try again."""
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...

    async def check(self) -> bool:
        """Whether it can be used now."""
        ...

    async def chat(self, body: Body) -> dict[str, Any]:
        """A chat completion.

        Raises:
            Refusal: it failed; the status says whether by the client's fault.
        """
        ...

    async def measured(self, body: Body, request: Request) -> Completion:
        """A chat completion with the log-probabilities of its tokens, where they can be had.

        Args:
            request: what the body asks; it says where the text stops.

        Raises:
            Refusal: it failed, or answered what is no completion.
        """
        ...

    def stream(self, body: Body) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes of a chat completion's events; leaving the context stops the work.

        Raises:
            Refusal: on entering, it refused; while iterating, it broke off.
        """
        ...

    async def forward(self, path: str, body: Body) -> bytes:
        """The JSON that another endpoint answers, such as `/embeddings`, unread.

        Raises:
            Refusal: it refused, could not be reached, or has no such endpoint.
        """
        ...
