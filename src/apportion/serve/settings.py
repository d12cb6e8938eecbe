"""How a server behaves, in one frozen value: limits, timeouts, defaults."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from apportion.core.errors import InputError, at_least, require_all
from apportion.serve.controls import Controls


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a stage may take, and what happens then; `Settings` checks them.

    Attributes:
        body_s: receiving a request's body; then 408.
        search_s: the search; then the route is decided and answered without passages, and marked.
        draft_s: the draft; then the route is decided without it, and marked.
        keep_alive_s: until a stream that is still being decided is begun with a comment, and between comments.
        shutdown_s: for running answers after SIGTERM.
    """

    body_s: float = 20.0
    search_s: float = 2.0
    draft_s: float = 30.0
    keep_alive_s: float = 5.0
    shutdown_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator chooses.

    Attributes:
        default: controls of a request that makes no choice.
        concurrency: answers in work at once. queue: requests that may wait beside them; more get 429.
        max_body_bytes: of a request; more get 413.
        max_tokens: of an answer without a limit of the client's; None leaves the pipelines' own, as they were profiled.
        keys: API keys, any of which is accepted; none leaves the server open.
        decisions: SQLite file of the decision log; None keeps the last ones in memory only.
        keep_prompts: whether the log holds what was asked and answered.
        shadow: decide and log, but pass every request on as it is.
        router: the router's path, followed for a better one; None follows none.
    """

    default: Controls = field(default_factory=Controls)
    concurrency: int = 64
    queue: int = 256
    max_body_bytes: int = 8 << 20
    max_tokens: int | None = None
    keys: tuple[str, ...] = ()
    decisions: Path | None = None
    keep_prompts: bool = False
    shadow: bool = False
    router: Path | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        require_all(
            lambda: _weight("--token-weight", self.default.token_weight),
            lambda: _weight("--latency-weight", self.default.latency_weight),
            lambda: at_least("--concurrency", self.concurrency, 1),
            lambda: at_least("--queue", self.queue, 0),
            lambda: at_least("--max-body", self.max_body_bytes, 1024),
            lambda: at_least("--max-tokens", 1 if self.max_tokens is None else self.max_tokens, 1),
            lambda: seconds("body_s", self.timeouts.body_s),
            lambda: seconds("keep_alive_s", self.timeouts.keep_alive_s),
            lambda: seconds("--search-timeout", self.timeouts.search_s),
            lambda: seconds("--draft-timeout", self.timeouts.draft_s),
            lambda: seconds("--shutdown", self.timeouts.shutdown_s, none_at_all=True),
            *(lambda key=key: _usable(key) for key in self.keys),
        )


def seconds(name: str, value: float, *, none_at_all: bool = False) -> None:
    """Refuse what is no time that something may take."""
    if not math.isfinite(value) or value < 0 or (value == 0 and not none_at_all):
        least = "from 0" if none_at_all else "above 0"
        raise InputError(f"{name} {value:g}: expected a finite number of seconds {least}")


def _weight(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} {value}: expected a finite number from 0", "give 0 to ignore that cost")


def _usable(key: str) -> None:
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"--api-key-file: a key of {len(key)} characters, expected at least 16 printable ones without spaces",
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
