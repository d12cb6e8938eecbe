"""What one server holds while it runs: the only value of this package that changes, and only as a whole."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from apportion.serve.backend import Backend
from apportion.serve.controls import Controls, aliases
from apportion.serve.decision import Decided, Outcome
from apportion.serve.decision_log import DecisionLog, record_of
from apportion.serve.metrics import Metrics
from apportion.serve.refusal import Refusal
from apportion.serve.routing import Routing
from apportion.serve.settings import Settings
from apportion.serve.upstream_errors import absent

log = logging.getLogger("apportion.serve")


class Serving:
    """A router, a backend and what is noted about them.

    Args:
        routing: may be exchanged for a better one while requests are in work; each keeps the one it began with.

    Attributes:
        draining: nothing new is taken. cut: what was in work has been ended. requests: the tasks that it is done in.
    """

    def __init__(self, routing: Routing, backend: Backend, settings: Settings) -> None:
        self.routing, self.backend, self.settings = routing, backend, settings
        self.log = DecisionLog(settings.decisions)
        self.metrics = Metrics(routing.reference)
        self.metrics.watch_lost(lambda: self.log.lost)
        self.draining = self.cut = False
        self.requests: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def named(self) -> Mapping[str, Controls]:
        """Controls by model name: the aliases, and the upstream's own name, which means `auto`."""
        own = aliases(self.settings.default, timed=self.routing.timed)
        abilities = self.backend.abilities
        return {**own, abilities.model: own["auto"]} if abilities else own

    async def controls_of(self, model: str) -> Controls:
        """The controls that a model name means; a backend that has not been reached is tried, since the name may be
        its own.

        Raises:
            Refusal: 404, nothing has this name; 503, whether the backend has is not known.
        """
        if model not in self.named:
            await self.reached()
        named = self.named
        if model not in named and self.backend.abilities is None:
            raise absent(self.backend.trouble)
        if model not in named:
            raise Refusal(404, f"model: {model[:80]!r} is unknown, expected one of {', '.join(named)}",
                          code="model_not_found", param="model")  # fmt: skip
        return named[model]

    async def reached(self) -> None:
        """Try a backend that has not been reached yet: its name, and what it can do, are known only then."""
        if self.backend.abilities is None:
            await self.backend.check()

    def note(self, decided: Decided, outcome: Outcome) -> None:
        """Log and count one answer."""
        self.log.add(record_of(decided, outcome, keep_prompts=self.settings.keep_prompts))
        self.metrics.note(decided, outcome)

    def behind(self, work: Coroutine[None, None, None]) -> None:
        """Do something that no client waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """End what is in work; each request still tells its client and notes what came of it."""
        self.cut = True
        for task in self.requests:
            task.cancel()

    async def close(self) -> None:
        """Finish what no client waits for, and write the log."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self.settings.timeouts.draft_s)
            for task in late:
                task.cancel()
            self.log.lost += len(late)  # each would have noted a decision
        await asyncio.to_thread(self.log.close)
        if self.log.lost:
            log.error("decisions are not in the log's file", extra={"fields": {"lost": self.log.lost}})
