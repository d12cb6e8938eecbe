"""What was decided for a request, and what came of it: the two values that headers, bodies, log and page show."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from apportion.serve.controls import Controls
from apportion.serve.routing import Price, counts

UNTOLD = "since the upstream reports none"  # ends what is said of tokens that are not measured


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that the answer was given."""

    id: str
    title: str


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens of one call; estimated where the upstream reports none.

    Attributes:
        cached_tokens: of the prompt's, those that the upstream says it had computed before.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    measured: bool = True
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: "Spent") -> "Spent":
        """Both calls together."""
        return Spent(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.measured and other.measured,
            self.cached_tokens + other.cached_tokens,
        )


def counted(usage: object) -> Spent | None:
    """Tokens as a server's usage object has them; None where it tells no numbers of tokens.

    >>> counted({"prompt_tokens": 12, "completion_tokens": 3}).total, counted({"prompt_tokens": None}), counted(None)
    (15, None, None)
    >>> [counted({"prompt_tokens": 12, "completion_tokens": one}) for one in (-5, 10**30, True)]
    [None, None, None]
    """
    prompt, completion, cached = counts(usage)
    return None if prompt is None or completion is None else Spent(prompt, completion, cached_tokens=cached or 0)


@dataclass(frozen=True, slots=True)
class Decided:
    """One routing decision, complete before the answer begins.

    Attributes:
        route: direct, rag, cot or rag+cot. forwarded: the request was passed on as it is.
        reason: who chose: "router", "forced", or why it was forwarded.
        model: the alias that the client named. judged: the text that was judged.
        question: the last message's text alone.
        draft, look: tokens of the draft and of a RAG answer that was looked at; None where not made.
        draft_reused: one of them is the answer, so it cost nothing.
        price: what tokens cost; None where the router was trained without prices.
        search_ms, draft_ms: time of the probes; None where not made. probe_ms: from the request to the decision.
        shadow: the route that would have been taken, where requests are passed on and decided only for the log.
        weaker: all that made this a weaker decision than the router could give; empty when nothing did.
    """

    id: str
    created: float
    model: str
    controls: Controls
    kind: str
    route: str
    reason: str
    judged: str
    question: str = ""
    forwarded: bool = False
    tier: str = ""
    p_rag: float | None = None
    p_cot: float | None = None
    likely: Mapping[str, float] = field(default_factory=dict)
    features: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    draft: Spent | None = None
    look: Spent | None = None
    draft_reused: bool = False
    price: Price | None = None
    search_ms: float | None = None
    draft_ms: float | None = None
    probe_ms: float = 0.0
    shadow: str = ""
    weaker: tuple[str, ...] = ()

    @property
    def wasted(self) -> Spent:
        """Tokens of what was made to decide and is not the answer."""
        made = {"direct": self.draft, "rag": self.look}
        total = Spent()
        for route, spent in made.items():
            if spent is not None and not (self.draft_reused and self.route == route):
                total = total.plus(spent)
        return total

    def charged(self, spent: Spent) -> float | None:
        """Millionths of the price's currency; None without a price, and where tokens are not known."""
        if self.price is None or not spent.measured:
            return None
        return self.price.of(spent.prompt_tokens, spent.completion_tokens, spent.cached_tokens)

    def headers(self) -> dict[str, str]:
        """What clients that show only headers see."""
        shown = {
            "route": self.route,
            "reason": self.reason,
            "p-rag": _number(self.p_rag),
            "p-cot": _number(self.p_cot),
            "probe-ms": f"{self.probe_ms:.1f}",
            "decision-id": self.id,
        }
        return {f"x-apportion-{name}": _header(value) for name, value in shown.items() if value}

    def public(self) -> dict[str, Any]:
        """What clients that show only bodies see: the `apportion` field."""
        return {
            "decision_id": self.id,
            "route": self.route,
            "reason": self.reason,
            "p_rag": self.p_rag,
            "p_cot": self.p_cot,
            "tier": self.tier,
            "token_weight": self.controls.token_weight,
            "latency_weight": self.controls.latency_weight,
            "probe_ms": round(self.probe_ms, 1),
            "draft_reused": self.draft_reused,
            "sources": [asdict(source) for source in self.sources],
            "weaker": list(self.weaker),
        }


@dataclass(slots=True)
class Outcome:
    """What came of a decision; filled in while the answer is sent.

    Attributes:
        status: ok, cancelled (the client went away) or error. error: what it was told.
        spent: tokens of the answer, without a draft that was thrown away.
        first_ms, total_ms: from the request to the first token and to the end.
        weaker: all that made the answer weaker than asked for: what was cut, what was estimated.
    """

    status: str = "ok"
    error: str = ""
    spent: Spent = Spent()
    finish: str = ""
    first_ms: float | None = None
    total_ms: float = 0.0
    weaker: tuple[str, ...] = ()
    text: str | None = None


def new_id() -> str:
    """A decision's id: sortable by time, not guessable."""
    return f"dec-{int(time.time() * 1000):011x}-{secrets.token_hex(6)}"


def spent_in_all(decided: Decided, outcome: Outcome) -> Spent:
    """Everything spent for an answer: what was made to decide and thrown away included."""
    return decided.wasted.plus(outcome.spent)


def usage(decided: Decided, answer: Spent) -> dict[str, Any]:
    """OpenAI's usage object for all that was spent, with the split of ours, and the price where there is one."""
    total = decided.wasted.plus(answer)
    split: dict[str, Any] = {"answer": _tokens(answer), "draft": _tokens(decided.wasted)}
    split["draft_reused"] = decided.draft_reused
    if decided.price is not None:
        split["price"] = decided.charged(total)
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.total,
        "apportion": split,
    }


def _tokens(spent: Spent) -> dict[str, int]:
    return {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _header(value: str) -> str:
    """Text that a header can carry."""
    return value.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")
