"""Turns asked of a backend: a pipeline's, and the one after it where reasoning ended without an answer.

The second turn is `apportion.route`'s, the same as `ask` and `profile` make: see `route.ask.answered`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from apportion.serve.asking import Asking
from apportion.serve.backend import Backend
from apportion.serve.chat_request import ChatRequest
from apportion.serve.deciding import Plan
from apportion.serve.decision import Outcome, Spent
from apportion.serve.events import finish_reason
from apportion.serve.probing import spent
from apportion.serve.refusal import Refusal
from apportion.serve.routing import Completion, Routing, read_completion

TOO_LONG = "context_length_exceeded"
ASKED_AGAIN = "the reasoning ended without an answer, which was asked for once more"


async def whole(backend: Backend, asking: Asking) -> tuple[dict[str, Any], Asking]:
    """A plain completion, and what was asked for it in the end: each try is shorter, until nothing can be left out.

    Raises:
        Refusal: the backend failed.
    """
    while True:
        try:
            return await backend.chat(asking.body()), asking
        except Refusal as refusal:
            asking = shortened(asking, refusal)


def shortened(asking: Asking, refusal: Refusal) -> Asking:
    """What to ask instead where the prompt was too long; the refusal itself where nothing can be left out."""
    shorter = asking.shorter() if refusal.code == TOO_LONG else None
    if shorter is None:
        raise refusal
    return shorter


@dataclass(frozen=True, slots=True)
class Added:
    """What a second turn brought: its text, the short answer in it (empty where none is), its end and its tokens."""

    text: str
    answer: str
    finish: str
    spent: Spent


@dataclass(frozen=True, slots=True)
class SecondTurn:
    """Asks for the answer alone where a reasoning pipeline's text has none.

    Args:
        asking: what the first turn was asked with. outcome: told what was done, in `weaker`.
    """

    backend: Backend
    routing: Routing
    chat: ChatRequest
    plan: Plan
    asking: Asking
    outcome: Outcome

    @property
    def possible(self) -> bool:
        """Whether this pipeline's answers may need one."""
        return self.routing.reasons(self.plan.decided.route, self.plan.decided.question)

    async def after(self, message: Mapping[str, Any], finish: str, used: Spent | None) -> Added | None:
        """The second turn; None where the first has an answer, the client's limit is reached, or it fails.

        Args:
            message: content, and reasoning_content, of the first turn. used: its tokens, where they are known.
        """
        route, question = self.plan.decided.route, self.plan.decided.question
        ended = "length" if finish == "length" else "filter" if finish == "content_filter" else "stop"
        said, thought = (str(message.get(name) or "") for name in ("content", "reasoning_content"))
        first = Completion(said, 0, 0, 0.0, finish=ended, thinking_text=thought)  # type: ignore[arg-type]
        request = self.routing.second_turn(route, question, self.asking.request, first)
        limit = self._limit(request.max_tokens, used) if request else 0
        if request is None or limit < 1:
            return None
        begun = time.perf_counter()
        try:
            body, asked = await whole(self.backend, self.asking.followed_by(self.chat, request, limit))
            second = read_completion(body, begun, replace(request, stop=asked.stop))
        except Refusal as refusal:
            self.outcome.weaker += (f"{ASKED_AGAIN}; that failed ({refusal.message[:200]})",)
            return None
        self.outcome.weaker += (ASKED_AGAIN,)
        if fewer := asked.cut[len(self.asking.cut) :]:
            self.outcome.weaker += (f"cut to the context where it was asked once more: {', '.join(fewer)}",)
        answer = self.routing.second_answer(route, question, second)
        return Added(second.text, answer, finish_reason(second.finish), spent(second) or Spent())

    def _limit(self, wanted: int, used: Spent | None) -> int:
        """New tokens of the turn, within what the client allows for the whole answer."""
        if self.chat.max_tokens is None:
            return wanted
        return min(wanted, self.chat.max_tokens - used.completion_tokens) if used and used.measured else 0
