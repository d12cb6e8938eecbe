"""A chat request -> the pipeline that answers it, with what was measured on the way. Each stage has its own time.

forwarded (tools, images, ...) | greeting | title call | off          passed on as sent
forced by alias, header or body                                       no probes
otherwise: question features -> search -> draft (where worth it) -> the router
"""

import asyncio
import time
from dataclasses import dataclass, field, replace

from apportion.serve.asking import Asking, Limits, ask, ask_draft
from apportion.serve.backend import Backend
from apportion.serve.chat_request import ChatRequest
from apportion.serve.controls import AUTO, OFF, Controls
from apportion.serve.conversation import Asked, read_conversation
from apportion.serve.decision import Decided, Source, Spent, new_id
from apportion.serve.refusal import Refusal
from apportion.serve.routing import Completion, Hits, Routing, read_completion, retrieves, without_passages
from apportion.serve.settings import Settings

NO_PASSAGES = "no passage shares a word with the question, so it is answered without"


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision and what follows from it.

    Attributes:
        asking: what the upstream is to be asked; None where the request is passed on as sent, or the draft is
            the answer.
        draft: the answer, where the draft is it.
    """

    decided: Decided
    asking: Asking | None = None
    draft: Completion | None = None


@dataclass(slots=True)
class _Probes:
    """What has been measured so far for one request."""

    features: dict[str, float] = field(default_factory=dict)
    hits: Hits | None = None
    draft: Completion | None = None
    search_ms: float | None = None
    draft_ms: float | None = None
    weaker: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Decider:
    """Decides for a backend; stateless, so a router may be exchanged between two requests.

    Args:
        routing: what decides. backend: what drafts. settings: limits and times.
    """

    routing: Routing
    backend: Backend
    settings: Settings

    async def decide(self, chat: ChatRequest, controls: Controls, started: float) -> Plan:
        """Choose a pipeline.

        Args:
            started: `time.perf_counter()` when the request came.

        Raises:
            Refusal: weights that the router cannot read.

        Cost: forwarded and forced requests nothing; otherwise a search (about 1 ms), a draft where it is worth
        its cost, and 0.1 ms.
        """
        asked = read_conversation(chat.messages)
        self.routing.check(controls)
        decided = Decided(new_id(), time.time(), chat.model, controls, asked.kind, "direct", "", asked.judged)
        why = _passed_on(chat, controls, asked)
        if why:
            return Plan(replace(decided, reason=why, forwarded=True))
        probes = _Probes()
        if controls.route != AUTO:
            decided = replace(decided, route=controls.route, reason="forced")
        else:
            decided = await self._routed(chat, asked, decided, probes)
        return await self._planned(chat, asked, decided, probes, started)

    async def _routed(self, chat: ChatRequest, asked: Asked, decided: Decided, probes: _Probes) -> Decided:
        weights = self.routing.check(decided.controls)
        abilities = self.backend.abilities
        drafts = abilities is None or abilities.logprobs
        wanted = self.routing.probes(weights, drafts=drafts)
        if not drafts and abilities is not None:
            probes.weaker.append(f"no draft probe: {abilities.logprobs_reason}")
        if "retrieval" in wanted:
            await self._search(asked.judged, probes)
        if wanted:
            probes.features = self.routing.features(asked.judged, probes.hits)
        if "draft" in wanted and drafts and self.routing.wants_draft(probes.features, weights):
            await self._draft(chat, asked, probes)
        if probes.draft is not None:
            probes.features = {**probes.features, **self.routing.draft_said(asked.judged, probes.draft, probes.hits)}
        choice = self.routing.decide(probes.features, probes.draft, weights)
        if choice.fallback_reason:
            probes.weaker.append(choice.fallback_reason)
        if choice.missing:
            probes.weaker.append(f"features not measured, read as their training mean: {', '.join(choice.missing)}")
        return replace(
            decided,
            route=choice.strategy,
            reason="router",
            tier=choice.tier,
            p_rag=choice.p_rag,
            p_cot=choice.p_cot,
            likely=choice.likely,
        )

    async def _planned(
        self, chat: ChatRequest, asked: Asked, decided: Decided, probes: _Probes, started: float
    ) -> Plan:
        """The decision with its passages, and what is asked for it."""
        route = decided.route
        if retrieves(route) and probes.hits is None and probes.search_ms is None:
            await self._search(asked.judged, probes)
        if retrieves(route) and not (probes.hits and probes.hits.passages):
            route = without_passages(route)
            if probes.hits:
                probes.weaker.append(NO_PASSAGES)
        shown = probes.hits.passages if probes.hits and retrieves(route) else ()
        whole = probes.draft is not None and (probes.draft.finish != "length" or self._no_more(chat, asked))
        reused = route == "direct" and whole
        if route == "direct" and probes.draft is not None and not whole:
            probes.weaker.append("the draft was cut by its limit, so the question was asked again")
        decided = replace(
            decided,
            route=route,
            features=self.routing.with_draft(probes.features, probes.draft),
            sources=tuple(Source(one.id, one.title) for one in shown),
            draft=_spent(probes.draft),
            draft_reused=reused,
            search_ms=probes.search_ms,
            draft_ms=probes.draft_ms,
            probe_ms=(time.perf_counter() - started) * 1000,
            weaker=tuple(probes.weaker),
        )
        if reused:
            return Plan(decided, draft=probes.draft)
        request = self.routing.request(route, asked.question, probes.hits if shown else None)
        return Plan(decided, asking=ask(chat, request, self._limits))

    async def _search(self, text: str, probes: _Probes) -> None:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.timeouts.search_s):
                probes.hits = await asyncio.to_thread(self.routing.search, text)
        except TimeoutError:
            probes.weaker.append(f"retrieval took over {self.settings.timeouts.search_s:g} s: answered without it")
        except Exception as error:  # whatever an index raises, the question is still answered
            probes.weaker.append(f"retrieval failed ({type(error).__name__}): answered without it")
        probes.search_ms = (time.perf_counter() - begun) * 1000

    async def _draft(self, chat: ChatRequest, asked: Asked, probes: _Probes) -> None:
        begun = time.perf_counter()
        asking = ask_draft(chat, self.routing.request("direct", asked.question, None), self._limits)
        try:
            async with asyncio.timeout(self.settings.timeouts.draft_s):
                body = await self.backend.chat(asking.body())
            probes.draft = read_completion(body, begun, logprobs=True)
            if not probes.draft.token_logprobs:
                probes.weaker.append("no draft features: the draft came back without log-probabilities or tokens")
        except TimeoutError:
            probes.weaker.append(f"the draft took over {self.settings.timeouts.draft_s:g} s: decided without it")
        except Refusal as refusal:
            probes.weaker.append(f"the draft failed ({refusal.message[:200]}): decided without it")
        probes.draft_ms = (time.perf_counter() - begun) * 1000

    def _no_more(self, chat: ChatRequest, asked: Asked) -> bool:
        """Whether an answer may be no longer than a draft, so that asking again would bring nothing."""
        request = self.routing.request("direct", asked.question, None)
        return self._limits.of_draft(chat, request) >= self._limits.of(chat, request)

    @property
    def _limits(self) -> Limits:
        abilities = self.backend.abilities
        return Limits(self.settings.max_tokens, thinking_switch=abilities is None or abilities.thinking_switch)


def _passed_on(chat: ChatRequest, controls: Controls, asked: Asked) -> str:
    """Why a request is passed on as it is; nothing where it is routed."""
    if controls.route == OFF:
        return "off"
    if what := chat.forwarded_reason():
        return f"forwarded: {what}"
    if asked.kind in ("greeting", "task") and controls.route == AUTO:
        return asked.kind
    return ""


def _spent(draft: Completion | None) -> Spent | None:
    return None if draft is None else Spent(draft.prompt_tokens, draft.completion_tokens, draft.tokens_measured)
