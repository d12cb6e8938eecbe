"""A chat request -> the pipeline that answers it, with what was measured on the way.

forwarded (tools, images, ...) | greeting | title call | off          passed on as sent
forced by alias, header or body                                       no probes
otherwise: question features -> search -> draft (where worth it) -> the router -> a look at a retrieved answer
"""

import time
from dataclasses import dataclass, replace

from apportion.serve.asking import Asking, ask
from apportion.serve.backend import Backend
from apportion.serve.chat_request import ChatRequest
from apportion.serve.controls import AUTO, OFF, Controls
from apportion.serve.conversation import Asked, read_conversation
from apportion.serve.decision import Decided, Source, new_id
from apportion.serve.probing import Probes, spent
from apportion.serve.routing import Completion, Decision, Routing, Weights, likely, retrieves, without_passages
from apportion.serve.settings import Settings

NO_PASSAGES = "no passage shares a word with the question, so it is answered without"


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision and what follows from it.

    Attributes:
        asking: what the upstream is to be asked; None where the request is passed on as sent, or a probe is the
            answer.
        ready: the answer, where a probe is it.
    """

    decided: Decided
    asking: Asking | None = None
    ready: Completion | None = None


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
        weights = self.routing.check(controls)
        if self.backend.abilities is None:  # what can be asked of it is not known before it has been reached
            await self.backend.check()
        about = chat.model, controls, asked.kind, "direct", "", asked.judged, asked.question
        decided = Decided(new_id(), time.time(), *about, price=self.routing.price)
        why = _passed_on(chat, controls, asked)
        if why:
            return Plan(replace(decided, reason=why, forwarded=True))
        probes = Probes(self.routing, self.backend, self.settings, chat, asked)
        if controls.route != AUTO:
            decided = replace(decided, route=controls.route, reason="forced")
        else:
            decided = await self._routed(decided, probes, weights)
        return await self._planned(decided, probes, started)

    async def _routed(self, decided: Decided, probes: Probes, weights: Weights) -> Decided:
        """The router's choice, after the probes that are worth their cost."""
        abilities = self.backend.abilities
        drafts = abilities is None or abilities.logprobs
        wanted = self.routing.probes(weights, drafts=drafts)
        if not drafts and abilities is not None:
            probes.weaker.append(f"no draft probe: {abilities.logprobs_reason}")
        if "retrieval" in wanted:
            await probes.search()
        if wanted:
            probes.say(probes.asked.weaker)
            probes.features = self.routing.features(probes.asked.judged, probes.hits)
        if "draft" in wanted and drafts and self.routing.wants_draft(probes.features, weights):
            await probes.make_draft()
        choice = self.routing.decide(probes.features, weights)
        if choice.look:
            choice = await self._after_look(choice, probes)
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
            likely=likely(choice),
        )

    async def _after_look(self, first: Decision, probes: Probes) -> Decision:
        """The second decision; the first stands where no answer could be looked at."""
        look = await probes.make_look()
        if look is None or probes.hits is None:
            return first
        asked = probes.asked
        second, probes.features = self.routing.decide_after(
            first, probes.features, asked.question, asked.judged, look, probes.hits
        )
        return second

    async def _planned(self, decided: Decided, probes: Probes, started: float) -> Plan:
        """The decision with its passages, and what is asked for it."""
        route = decided.route
        if retrieves(route):
            await probes.search()
        if retrieves(route) and not (probes.hits and probes.hits.passages):
            route = without_passages(route)
            if probes.hits:
                probes.weaker.append(NO_PASSAGES)
        shown = probes.hits.passages if probes.hits and retrieves(route) else ()
        request = self.routing.request(route, probes.asked.question, probes.hits if shown else None)
        asking = ask(probes.chat, request, probes.limits)
        ready = _ready(route, probes, asking)
        if ready is None:
            probes.note(asking)
        decided = replace(
            decided,
            route=route,
            features=probes.features,
            sources=tuple(Source(one.id, one.title) for one in shown),
            draft=spent(probes.draft),
            look=spent(probes.look),
            draft_reused=ready is not None,
            search_ms=probes.search_ms,
            draft_ms=probes.draft_ms,
            probe_ms=(time.perf_counter() - started) * 1000,
            weaker=tuple(probes.weaker),
        )
        return Plan(decided, None if ready else asking, ready)


def _ready(route: str, probes: Probes, asking: Asking) -> Completion | None:
    """The probe that is the answer, where one is.

    None is that was not asked for as the client asks (its temperature), nor one that its own limit cut.
    """
    made = {"direct": (probes.draft, probes.draft_asking), "rag": (probes.look, probes.look_asking)}
    probe, asked = made.get(route, (None, None))
    if probe is None or asked is None or not asked.answers(asking):
        return None
    if probe.finish != "length" or asked.options["max_tokens"] >= asking.options["max_tokens"]:
        return probe
    probes.weaker.append("the draft was cut by its limit, so the question was asked again")
    return None


def _passed_on(chat: ChatRequest, controls: Controls, asked: Asked) -> str:
    """Why a request is passed on as it is; nothing where it is routed."""
    if controls.route == OFF:
        return "off"
    if what := chat.forwarded_reason():
        return f"forwarded: {what}"
    if asked.kind in ("greeting", "task") and controls.route == AUTO:
        return asked.kind
    return ""
