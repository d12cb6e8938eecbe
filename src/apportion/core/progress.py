"""Progress on standard error with rate and time left; silent for work under two seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

SHOW_AFTER_S = 2.0
PLAIN_EVERY_S = 15.0


@runtime_checkable
class Advance(Protocol):
    """Called with the number of units just finished."""

    def __call__(self, units: int = 1) -> None: ...


@contextmanager
def progress(label: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Count `total` units of work; `done` of them were finished by an earlier run.

    On a terminal a bar is drawn; elsewhere a line is written every 15 seconds.
    """
    meter = _Meter(label, total, unit, done)
    try:
        yield meter.advance
    finally:
        meter.close()


@contextmanager
def without_tqdm() -> Iterator[None]:
    """Hide the bars that other packages draw with tqdm; ours go on."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield
        return
    own = tqdm.__init__

    def hidden(bar: object, *args: object, **settings: object) -> None:
        own(bar, *args, **{**settings, "disable": True})

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = own


class _Meter:
    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit, self.first = label, total, unit, done
        self.count = done
        self.start = self.last = time.monotonic()
        self.wait = SHOW_AFTER_S
        self.terminal = sys.stderr.isatty()

    def advance(self, units: int = 1) -> None:
        self.count += units
        now = time.monotonic()
        if now - self.last >= self.wait:
            self.last = now
            self.wait = 0.2 if self.terminal else PLAIN_EVERY_S
            self._show(now)

    def _show(self, now: float) -> None:
        rate = (self.count - self.first) / max(now - self.start, 1e-9)
        left = (self.total - self.count) / rate if rate else float("inf")
        text = f"{self.label}: {self.count}/{self.total} {self.unit}, {rate:.3g}/s, {clock(left)} left"
        if self.terminal:
            width = 24
            filled = round(width * min(1.0, self.count / max(self.total, 1)))
            sys.stderr.write(f"\r\x1b[K{'█' * filled}{'░' * (width - filled)} {text}")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self.terminal and self.wait != SHOW_AFTER_S:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def clock(seconds: float) -> str:
    """Seconds as people read them.

    >>> clock(75), clock(3700), clock(float("inf"))
    ('1m15s', '1h01m', '?')
    """
    if seconds == float("inf"):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"
