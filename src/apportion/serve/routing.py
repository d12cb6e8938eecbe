"""The only file that knows how `apportion.route` measures, decides and asks (`routing_files` how it is
saved, `relearning` how it learns)."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apportion.core.errors import InputError
from apportion.route.ask.answered import Answered, read_second, second_turn
from apportion.route.ask.evidence import answer_features
from apportion.route.ask.extraction import extract
from apportion.route.ask.features import group_of, needs_of
from apportion.route.ask.kinds import MAX_QUESTION_CHARS
from apportion.route.ask.pipelines import asked_as, build_request, uses_passages
from apportion.route.ask.probes import draft_features, features_of_hits, question_features, retrieved_features
from apportion.route.ask.prompts import Prompts
from apportion.route.ask.setup import DEFAULT_K
from apportion.route.ask.strategy import STRATEGIES, USES_COT, USES_RAG
from apportion.route.index.bm25 import Hits, Retriever
from apportion.route.llm.call import BadAnswerError, ErrorBodyError, says_too_long
from apportion.route.llm.connect import LLMSettings, connect
from apportion.route.llm.cut import cut
from apportion.route.llm.habits import GREEDY, MAX_STOPS, PROBE, REFUSING, Habits, after_refusal, body_of
from apportion.route.llm.protocol import LLM, Completion, Request, split_thinking
from apportion.route.llm.response import counts, read_body
from apportion.route.router.price import Price
from apportion.route.router.router import Decision, Router
from apportion.route.router.utility import Weights
from apportion.serve.controls import Controls
from apportion.serve.refusal import Refusal

__all__ = [
    "GREEDY",
    "LLM",
    "MAX_QUESTION_CHARS",
    "MAX_STOPS",
    "PROBE",
    "REFUSING",
    "Completion",
    "Decision",
    "Habits",
    "Hits",
    "LLMSettings",
    "Price",
    "Reference",
    "Request",
    "Routing",
    "Weights",
    "after_refusal",
    "body_of",
    "connect",
    "counts",
    "cut_passages",
    "likely",
    "prompt_too_long",
    "read_completion",
    "retrieves",
    "split_thinking",
    "without_passages",
]

FRONTIER = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # token weights drawn
FEW_CHARS = 200  # of passages, below which the rest is not worth a further attempt


@dataclass(frozen=True, slots=True)
class Reference:
    """The always-on pipeline and its means in training, None where not known.

    Attributes:
        tokens: None where the router was trained with prices: its scale is one of money.
        price: millionths of the currency; None for other routers.
    """

    strategy: str
    tokens: float | None
    price: float | None
    latency_ms: float | None


@dataclass(frozen=True, slots=True)
class Routing:
    """A router with what it was trained to route for: passages, prompts, and how many passages a prompt shows."""

    router: Router
    retriever: Retriever
    prompts: Prompts
    k: int = DEFAULT_K

    @property
    def model(self) -> str | None:
        """The model that the router was trained on; None where it does not say."""
        found = self.router.source.get("model")
        return str(found) if found else None

    @property
    def timed(self) -> bool:
        """Whether latency weights mean something."""
        return self.router.has_latency

    @property
    def price(self) -> Price | None:
        """What tokens cost; None where the router was trained without prices."""
        return self.router.scale.price

    @property
    def reference(self) -> Reference:
        """What savings are counted against."""
        scale = self.router.scale
        tokens, price = (scale.tokens, None) if scale.price is None else (None, scale.tokens)
        return Reference(scale.strategy, tokens, price, scale.latency_ms)

    def probes(self, weights: Weights, *, drafts: bool) -> frozenset[str]:
        """Which of "question", "retrieval" and "draft" are worth measuring at these weights."""
        names = self.router.features_wanted(weights, draft=drafts)
        searched = {"retrieval"} if needs_of(names).search else set()
        return frozenset({*(str(group_of(name)) for name in names), *searched})

    def search(self, text: str) -> Hits:
        """The passages for a question; a millisecond or so, in the thread that calls."""
        return self.retriever.search(text, self.k)

    def features(self, text: str, hits: Hits | None) -> dict[str, float]:
        """Features of the question and, where it was searched for, of the result."""
        return question_features(text) | (features_of_hits(hits, text) if hits else {})

    def wants_draft(self, features: Mapping[str, float], weights: Weights) -> bool:
        """Whether a draft is worth its cost for this question."""
        return self.router.wants_draft(features, weights)

    def decide(self, features: Mapping[str, float], weights: Weights) -> Decision:
        """The pipeline for a question; where it says `look`, `decide_after` comes next. Pure."""
        return self.router.decide(features, weights.token, weights.latency)

    def settled(self, features: Mapping[str, float], weights: Weights) -> Decision:
        """The last decision for a question whose features are known already."""
        first = self.router.decide(features, weights.token, weights.latency)
        return self.router.decide_after(first, features) if first.look else first

    def with_draft(self, features: Mapping[str, float], draft: Completion) -> dict[str, float]:
        """The features with those of the draft."""
        return {**features, **draft_features(draft.token_logprobs, draft.margin)}

    def draft_said(self, question: str, text: str, draft: Completion, hits: Hits | None) -> dict[str, float]:
        """Features of what a draft says, beside the passages where there are some.

        Args:
            question: what was asked. text: what is judged, the turns before it included.
        """
        answer = extract(self.prompts.of("direct", question), draft).answer
        return answer_features("draft", answer, text, hits.passages if hits else ())

    def decide_after(
        self, first: Decision, features: Mapping[str, float], question: str, text: str, look: Completion, hits: Hits
    ) -> tuple[Decision, dict[str, float]]:
        """The second decision, with the RAG answer at hand (without a passage it was asked as Direct), and all that it
        read."""
        answer = extract(self.prompts.of(asked_as("rag", hits.passages), question), look).answer
        read = {**question_features(text), **features_of_hits(hits, text), **features}
        read |= retrieved_features(look.token_logprobs, look.margin) | answer_features(
            "rag", answer, text, hits.passages
        )
        return self.router.decide_after(first, read), read

    def request(self, strategy: str, question: str, hits: Hits | None) -> Request:
        """What a pipeline asks; `expendable` is where the passages are."""
        return build_request(self.prompts, strategy, question, hits.passages if hits else ())

    def reasons(self, strategy: str, question: str) -> bool:
        """Whether an answer of this pipeline may have to be asked for once more."""
        return USES_COT[STRATEGIES.index(strategy)] and bool(self.prompts.of(strategy, question).asks_again)

    def second_turn(self, strategy: str, question: str, request: Request, said: Completion) -> Request | None:
        """What asks for the answer alone; None where the reasoning holds one."""
        prompt = self.prompts.of(strategy, question)
        return second_turn(strategy, prompt, request, Answered(said, extract(prompt, said)))

    def second_answer(self, strategy: str, question: str, said: Completion) -> str:
        """The short answer in a second turn; empty where none is."""
        found = read_second(self.prompts.of(strategy, question), said)
        return found.answer if found else ""

    def answer_of(self, strategy: str, question: str, text: str, thinking: str, *, cut: bool) -> str:
        """The short answer within what a pipeline's model wrote about a question; none if it was cut off before."""
        completion = Completion(text, 0, 0, 0.0, thinking_text=thinking, finish="length" if cut else "stop")
        return extract(self.prompts.of(strategy, question), completion).answer

    def frontier(self, features: Sequence[Mapping[str, float]], token: float, latency: float) -> dict[str, Any]:
        """What the pipelines and the router are worth over a range of token weights.

        Args:
            features: of the questions whose routes are counted; with none, the best single pipeline's is.
            token: the weight in use. latency: the weight on latency, the same throughout.

        Returns:
            The pipelines' mean quality and tokens (or price) in training; for each weight the utility of always
            taking each, of the router (with its gain on held-out questions) and the shares of the routes that the
            questions take.
        """
        quality, tokens, _ = self.router.means
        charged = "tokens" if self.price is None else "price"
        places = {name: column for column, name in enumerate(STRATEGIES) if column in self.router.columns}
        named = {
            name: {"quality": float(quality[at]), charged: float(tokens[at]) * self.router.scale.tokens}
            for name, at in places.items()
        }
        weights = sorted({*FRONTIER, token})
        points = [self._point(features, Weights(weight, latency)) for weight in weights]
        of = f"the last {len(features)} routed questions would take" if features else "questions would take"
        return {"pipelines": named, "points": points, "current": weights.index(token), "of": of}

    def _point(self, features: Sequence[Mapping[str, float]], weights: Weights) -> dict[str, Any]:
        """What the router does at these weights."""
        quality, tokens, latency = self.router.means
        best = self.router.static_column(weights)
        tier = self.router.tier_at(weights)
        gain = tier.gate.at(weights)[0] if tier else 0.0
        chosen = [self.settled(one, weights).strategy for one in features]
        counts = Counter(chosen or [STRATEGIES[best]])
        values = quality - weights.token * tokens - weights.latency * latency
        return {
            "token_weight": weights.token,
            "shares": {name: counts[name] / counts.total() for name in STRATEGIES},
            "always": {STRATEGIES[column]: float(values[column]) for column in self.router.columns},
            "utility": float(values[best]) + gain,
            "best_static": STRATEGIES[best],
            "gain": gain,
            "open": tier is not None,
        }

    def check(self, controls: Controls) -> Weights:
        """The weights of a request.

        Raises:
            Refusal: a weight on latency or on prices for a router that knows none.
        """
        if controls.priced and self.price is None:
            raise Refusal(400, "price_weight: this router was trained without prices, expected token_weight")
        weights = weights_of(controls)
        if weights.latency and not self.timed:
            raise Refusal(400, "latency_weight: this router was trained without latencies, expected 0")
        return weights


def weights_of(controls: Controls) -> Weights:
    """The route's weights for a client's."""
    try:
        return Weights(controls.token_weight, controls.latency_weight)
    except InputError as error:
        raise Refusal(400, str(error.problem)) from error


def retrieves(strategy: str) -> bool:
    """Whether a pipeline shows passages."""
    return uses_passages(strategy)


def without_passages(strategy: str) -> str:
    """The pipeline with as much reasoning and no retrieval.

    >>> without_passages("rag+cot")
    'cot'
    """
    return asked_as(strategy, ())


def cut_passages(request: Request) -> Request | None:
    """The request with half of its passages' characters, the worse ones gone; without any where that leaves few.

    None where it shows no passages.

    >>> cut_passages(Request("P1 P2 question", expendable=(0, 6))).user, cut_passages(Request("question"))
    ('question', None)
    """
    start, end = request.expendable
    if end == start:
        return None
    half = (end - start + 1) // 2
    return cut(request, half if half >= FEW_CHARS else end - start)


def read_completion(body: Mapping[str, Any], started: float, request: Request) -> Completion:
    """An upstream's JSON as a completion.

    Args:
        started: `time.perf_counter()` when it was asked. request: says where the text stops, and whether
            log-probabilities are read.

    Raises:
        Refusal: 502, it is no completion.
    """
    try:
        return read_body(body, request, (time.perf_counter() - started) * 1000)
    except (BadAnswerError, ErrorBodyError) as error:
        raise Refusal(502, f"upstream: {error}", code="bad_upstream_answer") from error


def prompt_too_long(status: int, message: str) -> bool:
    """Whether an upstream's error says that the prompt exceeds its context.

    >>> prompt_too_long(400, "This model's maximum context length is 2048 tokens")
    True
    """
    return says_too_long(status, message)


def likely(decision: Decision) -> dict[str, float]:
    """The four pipelines' probabilities, the heads taken as independent; a head without a choice says no.

    Empty where no head decided.
    """
    rag, cot = decision.p_rag, decision.p_cot
    if rag is None and cot is None:
        return {}
    either = {True: (rag or 0.0, cot or 0.0), False: (1 - (rag or 0.0), 1 - (cot or 0.0))}
    pairs = zip(STRATEGIES, USES_RAG, USES_COT, strict=True)
    return {name: either[uses_rag][0] * either[uses_cot][1] for name, uses_rag, uses_cot in pairs}
