"""What Prometheus reads. One registry for each server, nothing global."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from apportion.serve.decision import Decided, Outcome, spent_in_all
from apportion.serve.routing import Reference

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(slots=True)
class Totals:
    """Sums since the start, for the dashboard.

    Attributes:
        routed: answers that the router chose the pipeline of and that succeeded; savings are theirs.
        always_tokens, always_price: what the always-on pipeline would have spent for them; 0 where that is not known.
        price: of all answers, in millionths of the router's currency. timed, priced: whether either is compared.
    """

    answers: int = 0
    routed: int = 0
    errors: int = 0
    tokens: int = 0
    drafts_reused: int = 0
    always_tokens: float = 0.0
    saved_tokens: float = 0.0
    price: float = 0.0
    always_price: float = 0.0
    saved_price: float = 0.0
    saved_seconds: float = 0.0
    timed: bool = False
    priced: bool = False


class Metrics:
    """Counters of one server.

    Args:
        reference: the always-on pipeline.
    """

    def __init__(self, reference: Reference) -> None:
        self.registry = CollectorRegistry()
        self._always, always = reference, reference.strategy
        self._totals = Totals(timed=reference.latency_ms is not None, priced=reference.price is not None)

        def counter(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"apportion_{name}", what, labels, registry=self.registry)

        self.requests = counter("requests", "HTTP requests", ("path", "status"))
        self.routes = counter("routes", "Decisions by route and reason", ("route", "reason"))
        self.tokens = counter("tokens", "Tokens spent, drafts thrown away included", ("stage", "kind"))
        self.saved_tokens = counter("saved_tokens", f"Tokens that always {always} spends beyond these answers")
        self.excess_tokens = counter("excess_tokens", f"Tokens spent beyond what {always} spends on average")
        self.saved_seconds = counter("saved_seconds", f"Seconds that always {always} takes beyond these answers")
        if reference.price is not None:
            money = "in millionths of the router's currency"
            self.price = counter("price", f"Price of what was spent, {money}", ("stage",))
            self.saved_price = counter("saved_price", f"Price of always {always} beyond these answers, {money}")
            self.excess_price = counter("excess_price", f"Price beyond that of {always} on average, {money}")
        self.weaker = counter("weaker_results", "Answers with a result weaker than asked for")
        self.errors = counter("errors", "Answers that failed or were left", ("status",))
        stages = ("stage",)
        self.seconds = Histogram("apportion_seconds", "Time by stage", stages, registry=self.registry, buckets=_SECONDS)
        self.running = Gauge("apportion_running", "Answers in work", registry=self.registry)
        self.waiting = Gauge("apportion_waiting", "Requests that wait for a place", registry=self.registry)
        self.refused = counter("refused", "Requests refused since the queue was full")

    def watch_lost(self, lost: Callable[[], float]) -> None:
        """Show how many decisions could not be written."""
        gauge = Gauge("apportion_decisions_lost", "Decisions that could not be written", registry=self.registry)
        gauge.set_function(lost)

    def note(self, decided: Decided, outcome: Outcome) -> None:
        """Count one answer."""
        self.routes.labels(decided.route, decided.reason.partition(":")[0]).inc()
        for stage, spent in (("draft", decided.wasted), ("answer", outcome.spent)):
            self.tokens.labels(stage, "prompt").inc(spent.prompt_tokens)
            self.tokens.labels(stage, "completion").inc(spent.completion_tokens)
        times = {"search": decided.search_ms, "draft": decided.draft_ms, "decision": decided.probe_ms}
        times |= {"first token": outcome.first_ms, "answer": outcome.total_ms}
        for stage, took_ms in times.items():
            if took_ms is not None:
                self.seconds.labels(stage).observe(took_ms / 1000)
        if decided.weaker or outcome.weaker:
            self.weaker.inc()
        self._totals.answers += 1
        self._totals.tokens += spent_in_all(decided, outcome).total
        self._totals.drafts_reused += decided.draft_reused
        self._count_price(decided, outcome)
        if outcome.status != "ok":
            self.errors.labels(outcome.status).inc()
            self._totals.errors += 1
        elif decided.reason == "router":
            self._count_savings(decided, outcome)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)

    def totals(self) -> dict[str, Any]:
        """Sums since the start."""
        return asdict(self._totals)

    def _count_price(self, decided: Decided, outcome: Outcome) -> None:
        if self._always.price is None:
            return
        for stage, spent in (("draft", decided.wasted), ("answer", outcome.spent)):
            price = decided.charged(spent) or 0.0
            self.price.labels(stage).inc(price)
            self._totals.price += price

    def _count_savings(self, decided: Decided, outcome: Outcome) -> None:
        """Against the always-on pipeline; nothing where it is not known what was spent."""
        totals, spent = self._totals, spent_in_all(decided, outcome)
        totals.routed += 1
        if self._always.tokens is not None and spent.measured:
            saved = self._always.tokens - spent.total
            (self.saved_tokens if saved >= 0 else self.excess_tokens).inc(abs(saved))
            totals.always_tokens += self._always.tokens
            totals.saved_tokens += saved
        price = decided.charged(spent)
        if self._always.price is not None and price is not None:
            saved = self._always.price - price
            (self.saved_price if saved >= 0 else self.excess_price).inc(abs(saved))
            totals.always_price += self._always.price
            totals.saved_price += saved
        if self._always.latency_ms is not None:
            saved = (self._always.latency_ms - outcome.total_ms) / 1000
            totals.saved_seconds += saved
            self.saved_seconds.inc(max(0.0, saved))
