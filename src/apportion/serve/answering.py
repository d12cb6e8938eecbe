"""A plan -> its answer, whole or as events, whatever makes it: the draft, a pipeline, or the request as it was sent."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from apportion.serve.asking import Asking, as_sent
from apportion.serve.backend import Backend
from apportion.serve.chat_request import ChatRequest
from apportion.serve.deciding import Plan
from apportion.serve.decision import UNTOLD, Outcome, Spent, counted, usage
from apportion.serve.events import finish_reason, finished_answer, stamp
from apportion.serve.probing import spent
from apportion.serve.refusal import Refusal
from apportion.serve.relay import Relay
from apportion.serve.routing import Completion, Habits, Routing, split_thinking
from apportion.serve.turns import SecondTurn, shortened, whole
from apportion.serve.upstream_errors import choices_of


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers plans by a backend.

    Args:
        backend: asked. routing: knows where the short answer is in what a pipeline's model wrote.
        keeps_text: whether the outcome of a stream gets its text.
    """

    backend: Backend
    routing: Routing
    keeps_text: bool = False

    async def whole(self, chat: ChatRequest, plan: Plan, outcome: Outcome) -> dict[str, Any]:
        """The body of a plain answer, with decision, sources and usage; `outcome` is filled in.

        Raises:
            Refusal: the backend failed.
        """
        reply, asking = (self._of_draft(plan, plan.ready), None) if plan.ready else await self._asked(chat, plan)
        used = reply.get("usage")
        outcome.spent = spent(plan.ready) or counted(used) or Spent(measured=False)
        choices = choices_of(reply) or []
        for choice in choices:
            _set_apart(choice.get("message"))
        answer = ""
        if asking is not None:
            _note_cuts(asking, outcome)
            turn = SecondTurn(self.backend, self.routing, chat, plan, asking, outcome)
            answer = await _completed(choices, turn)
        outcome.finish = str(choices[0].get("finish_reason") or "") if choices else ""
        outcome.text = _text(choices)
        _note_untold(outcome)
        reply["usage"] = {**(used if isinstance(used, dict) else {}), **usage(plan.decided, outcome.spent)}
        reply["apportion"] = self._decision(plan, choices, outcome, answer)
        return reply

    async def begin(
        self, chat: ChatRequest, plan: Plan, outcome: Outcome, stack: AsyncExitStack, elapsed_ms: Callable[[], float]
    ) -> AsyncIterator[bytes]:
        """The events of a streamed answer; its upstream has answered when this returns.

        Args:
            stack: what must be closed when the client has gone or the answer has ended.

        Raises:
            Refusal: the backend refused.
        """
        if plan.ready is not None:
            return self._draft_events(chat, plan, plan.ready, outcome, elapsed_ms)
        relay = Relay(
            plan.decided,
            outcome,
            include_usage=chat.include_usage,
            elapsed_ms=elapsed_ms,
            choices=chat.choices,
            keeps_text=self.keeps_text,
            key=self.backend.key,
        )
        stack.callback(relay.settle)
        if plan.asking is None:
            source = await stack.enter_async_context(self.backend.stream(as_sent(chat, self._habits, stream=True)))
            return relay.events(source)
        asking = plan.asking
        while True:  # each turn is shorter, until nothing can be left out
            try:
                source = await stack.enter_async_context(self.backend.stream(asking.body(stream=True)))
                break
            except Refusal as refusal:
                asking = shortened(asking, refusal)
        _note_cuts(asking, outcome)
        turn = SecondTurn(self.backend, self.routing, chat, plan, asking, outcome)
        relay.second_turn = turn if turn.possible else None
        return relay.events(source)

    async def _asked(self, chat: ChatRequest, plan: Plan) -> tuple[dict[str, Any], Asking | None]:
        if plan.asking is None:
            return await self.backend.chat(as_sent(chat, self._habits)), None
        return await whole(self.backend, plan.asking)

    def _of_draft(self, plan: Plan, draft: Completion) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": draft.text}
        if draft.thinking_text:
            message["reasoning_content"] = draft.thinking_text
        choice = {"index": 0, "message": message, "finish_reason": finish_reason(draft.finish), "logprobs": None}
        return {**stamp(plan.decided, self._model), "object": "chat.completion", "choices": [choice]}

    async def _draft_events(
        self, chat: ChatRequest, plan: Plan, draft: Completion, outcome: Outcome, elapsed_ms: Callable[[], float]
    ) -> AsyncIterator[bytes]:
        outcome.spent, outcome.finish, outcome.text = spent(draft) or Spent(), finish_reason(draft.finish), draft.text
        outcome.first_ms = elapsed_ms()
        _note_untold(outcome)
        decided = replace(plan.decided, weaker=plan.decided.weaker + outcome.weaker)
        used = usage(plan.decided, outcome.spent) if chat.include_usage else None
        mark = stamp(plan.decided, self._model)
        yield b"".join(finished_answer(draft.text, draft.thinking_text, draft.finish, mark, decided, used))

    def _decision(self, plan: Plan, choices: list[dict[str, Any]], outcome: Outcome, answer: str) -> dict[str, Any]:
        public = plan.decided.public()
        public["weaker"] += outcome.weaker
        if not plan.decided.forwarded and choices:
            message = choices[0].get("message") or {}
            said, thought = str(message.get("content") or ""), str(message.get("reasoning_content") or "")
            cut = choices[0].get("finish_reason") in ("length", "content_filter")
            route, question = plan.decided.route, plan.decided.question
            public["answer"] = answer or self.routing.answer_of(route, question, said, thought, cut=cut)
        return public

    @property
    def _habits(self) -> Habits:
        return self.backend.abilities.habits if self.backend.abilities else Habits()

    @property
    def _model(self) -> str:
        return self.backend.abilities.model if self.backend.abilities else "unknown"


async def _completed(choices: list[dict[str, Any]], turn: SecondTurn) -> str:
    """The short answer of a second turn, whose text then follows the first's; empty where there was none."""
    message = choices[0].get("message") if len(choices) == 1 else None
    if not turn.possible or not isinstance(message, dict):
        return ""
    finish = str(choices[0].get("finish_reason") or "")
    added = await turn.after(message, finish, turn.outcome.spent)
    if added is None:
        return ""
    turn.outcome.spent = turn.outcome.spent.plus(added.spent)
    said = message.get("content")
    message["content"] = f"{said}\n\n{added.text}" if said else added.text
    choices[0]["finish_reason"] = added.finish
    return added.answer


def _note_untold(outcome: Outcome) -> None:
    if not outcome.spent.measured:
        outcome.weaker += (f"token counts are unknown, {UNTOLD}",)


def _note_cuts(asking: Asking, outcome: Outcome) -> None:
    if asking.cut:
        outcome.weaker += (f"cut to the context: {', '.join(asking.cut)}",)


def _set_apart(message: object) -> None:
    """Move thinking that a server left in the content."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        return
    if message["content"].lstrip().startswith("<think>"):
        thought, said = split_thinking(message["content"])
        message["content"], message["reasoning_content"] = said, thought


def _text(choices: list[dict[str, Any]]) -> str:
    message = choices[0].get("message") if choices else None
    return str(message.get("content") or "") if isinstance(message, dict) else ""
