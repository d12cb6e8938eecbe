"""Progress on standard error with rate and time left; silent for work under two seconds."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

SHOW_AFTER_S = 2.0
PLAIN_EVERY_S = 15.0
Part = TypeVar("Part", bound=Sized)


@runtime_checkable
class Advance(Protocol):
    """Called with the number of units just finished."""

    def __call__(self, units: int = 1) -> None: ...


def ignored(units: int = 1) -> None:
    """Progress that nobody looks at."""


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


@dataclass(slots=True)
class _Forecast:
    """Seconds by label: spent so far, and expected from now on; and the units expected, where they were told."""

    units: dict[str, int] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)


_FORECAST: ContextVar[_Forecast | None] = ContextVar("forecast", default=None)


@contextmanager
def forecast() -> Iterator[None]:
    """A run of several stages: its bars also say what is left in all, as far as `expect` was told.

    >>> with forecast():
    ...     with progress("first", 1, "units") as advance:
    ...         advance()
    ...     expect("second", 60)
    ...     spent_s("first") < 2
    True
    """
    token = _FORECAST.set(_Forecast())
    try:
        yield
    finally:
        _FORECAST.reset(token)


def expect(label: str, seconds: float, units: int = 0) -> None:
    """Say how long all work under a label will take from now on; without a forecast nothing happens.

    Args:
        units: the totals of all bars of that work together, if known: then the rate of what is done tells the time of
            the rest.
    """
    if (known := _FORECAST.get()) is not None:
        known.expected[label], known.units[label] = seconds, units


def expect_units(label: str, units: int) -> None:
    """Say how many units of work under a label are to come after all; they take as long each as was expected."""
    known = _FORECAST.get()
    if known is not None and known.units.get(label):
        known.expected[label] *= units / known.units[label]
        known.units[label] = units


def spent_s(label: str) -> float:
    """Seconds that finished work under a label took in this run; 0 without a forecast."""
    known = _FORECAST.get()
    return known.spent.get(label, 0.0) if known else 0.0


def counted(items: Iterable[Part], advance: Callable[[int], object]) -> Iterator[Part]:
    """Items as they come; after each, its length is told."""
    for item in items:
        yield item
        advance(len(item))


def note(text: str) -> None:
    """One line for people on standard error, where a run has a forecast; elsewhere nobody waits."""
    if _FORECAST.get() is not None:
        sys.stderr.write(f"note: {text}\n")
        sys.stderr.flush()


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
        text += self._in_all(left, now - self.start)
        if self.terminal:
            width = 24
            filled = round(width * min(1.0, self.count / max(self.total, 1)))
            sys.stderr.write(f"\r\x1b[K{'█' * filled}{'░' * (width - filled)} {text}")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def _in_all(self, left: float, elapsed: float) -> str:
        known = _FORECAST.get()
        if known is None or not known.expected:
            return ""
        others = sum(seconds for label, seconds in known.expected.items() if label != self.label)
        own = max(left, known.expected.get(self.label, 0.0) - elapsed)
        made = self.count - self.first
        if made and known.units.get(self.label):
            own = max(left, (known.units[self.label] - self.count) * elapsed / made)
        return f", about {clock(others + own)} in all"

    def close(self) -> None:
        if (known := _FORECAST.get()) is not None:
            took = time.monotonic() - self.start
            known.spent[self.label] = known.spent.get(self.label, 0.0) + took
            made, units = self.count - self.first, known.units.get(self.label, 0)
            if units:  # this bar's are over, whether an earlier run did them or they were left out
                each = took / made if made else known.expected[self.label] / units
                known.units[self.label] = max(0, units - self.total)
                known.expected[self.label] = known.units[self.label] * each
            elif self.label in known.expected:
                known.expected[self.label] = max(0.0, known.expected[self.label] - took)
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
