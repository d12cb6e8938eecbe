"""What one server holds while it runs: the only value of this package that changes, and only as a whole."""

import asyncio
from collections.abc import Coroutine

from apportion.serve.backend import Backend
from apportion.serve.decision import Decided, Outcome
from apportion.serve.decision_log import DecisionLog, record_of
from apportion.serve.metrics import Metrics
from apportion.serve.routing import Routing
from apportion.serve.settings import Settings


class Serving:
    """A router, a backend and what is noted about them.

    Args:
        routing: may be exchanged for a better one while requests are in work; each keeps the one it began with.
    """

    def __init__(self, routing: Routing, backend: Backend, settings: Settings) -> None:
        self.routing, self.backend, self.settings = routing, backend, settings
        self.log = DecisionLog(settings.decisions)
        self.metrics = Metrics(routing.reference)
        self.metrics.watch_lost(lambda: self.log.lost)
        self.draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, decided: Decided, outcome: Outcome) -> None:
        """Log and count one answer."""
        self.log.add(record_of(decided, outcome, keep_prompts=self.settings.keep_prompts))
        self.metrics.note(decided, outcome)

    def behind(self, work: Coroutine[None, None, None]) -> None:
        """Do something that no client waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Finish what no client waits for, and write the log."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.timeouts.draft_s)
        await asyncio.to_thread(self.log.close)
