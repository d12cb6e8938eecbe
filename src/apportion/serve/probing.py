"""What is measured before a decision: a search, a draft, a retrieved answer. Each has its own time and may fail.

A probe that fails or takes too long is left out and said; the question is still answered.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from apportion.serve.asking import Asking, Limits, ask_draft, ask_look
from apportion.serve.backend import Backend
from apportion.serve.chat_request import ChatRequest
from apportion.serve.conversation import Asked
from apportion.serve.decision import Spent
from apportion.serve.refusal import Refusal
from apportion.serve.routing import Completion, Hits, Routing
from apportion.serve.settings import Settings


@dataclass(slots=True)
class Probes:
    """The probes of one request: what they measured so far, each made at most once.

    Attributes:
        features: by name. hits: of the search. draft, look: a Direct and a RAG answer with log-probabilities, and
            what each was asked with.
        search_ms, draft_ms: time of the search and of both answers; None where not made.
        weaker: what failed, in words.
    """

    routing: Routing
    backend: Backend
    settings: Settings
    chat: ChatRequest
    asked: Asked
    features: dict[str, float] = field(default_factory=dict)
    hits: Hits | None = None
    draft: Completion | None = None
    draft_asking: Asking | None = None
    look: Completion | None = None
    look_asking: Asking | None = None
    search_ms: float | None = None
    draft_ms: float | None = None
    weaker: list[str] = field(default_factory=list)

    @property
    def limits(self) -> Limits:
        """What may be asked for."""
        found = self.backend.abilities
        return Limits(self.settings.max_tokens, found.habits) if found else Limits(self.settings.max_tokens)

    async def search(self) -> None:
        """Search for the text that is judged."""
        if self.search_ms is not None:
            return
        self.say(self.asked.weaker)
        begun, most = time.perf_counter(), self.settings.timeouts.search_s
        try:
            async with asyncio.timeout(most):
                self.hits = await asyncio.to_thread(self.routing.search, self.asked.judged)
        except TimeoutError:
            self.weaker.append(f"retrieval took over {most:g} s: answered without it")
        except Exception as error:  # whatever an index raises, the question is still answered
            self.weaker.append(f"retrieval failed ({type(error).__name__}): answered without it")
        self.search_ms = (time.perf_counter() - begun) * 1000

    async def make_draft(self) -> None:
        """A short Direct answer and its features."""
        request = self.routing.request("direct", self.asked.question, None)
        self.draft_asking = ask_draft(self.chat, request, self.limits)
        self.draft = await self._measured("the draft", self.draft_asking)
        if self.draft is not None:
            said = self.routing.draft_said(self.asked.question, self.asked.judged, self.draft, self.hits)
            self.features = self.routing.with_draft({**self.features, **said}, self.draft)

    async def make_look(self) -> Completion | None:
        """A RAG answer to be looked at; without a passage RAG is Direct, so the draft is it. None where it failed."""
        await self.search()
        if self.hits is None:
            return None
        if not self.hits.passages:
            if self.draft is None:
                self.draft_asking = self._look("direct")
                self.draft = await self._measured("the retrieved answer", self.draft_asking)
            return self.draft
        self.look_asking = self._look("rag")
        self.look = await self._measured("the retrieved answer", self.look_asking)
        return self.look

    def _look(self, strategy: str) -> Asking:
        """Asks for an answer as it would be given, measured."""
        return ask_look(self.chat, self.routing.request(strategy, self.asked.question, self.hits), self.limits)

    def note(self, asking: Asking) -> None:
        """Say what the upstream's habits make of what is asked."""
        self.say(asking.weaker)

    def say(self, weaker: Iterable[str]) -> None:
        """Add what is not said yet."""
        self.weaker += [said for said in weaker if said not in self.weaker]

    async def _measured(self, what: str, asking: Asking) -> Completion | None:
        begun, most, found = time.perf_counter(), self.settings.timeouts.draft_s, None
        self.note(asking)
        try:
            async with asyncio.timeout(most):
                found = await self.backend.measured(asking.body(), replace(asking.request, stop=asking.stop))
            if not found.token_logprobs:
                self.weaker.append(f"{what} came back without log-probabilities or tokens")
        except TimeoutError:
            self.weaker.append(f"{what} took over {most:g} s: decided without it")
        except Refusal as refusal:
            self.weaker.append(f"{what} failed ({refusal.message[:200]}): decided without it")
        self.draft_ms = (self.draft_ms or 0.0) + (time.perf_counter() - begun) * 1000
        return found


def spent(completion: Completion | None) -> Spent | None:
    """Tokens of a probe; None where it was not made."""
    if completion is None:
        return None
    tokens = completion.prompt_tokens, completion.completion_tokens
    return Spent(*tokens, completion.tokens_measured, completion.cached_tokens or 0)
