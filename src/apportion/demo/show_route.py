"""Second half of the demonstration: a router learned from recorded answers, judged on others, then used live."""

import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from apportion.core.artifact import Json
from apportion.core.progress import progress
from apportion.demo import Question, model_path, prompts_path, write_corpus
from apportion.demo.recorded import fresh_questions, recorded
from apportion.route.answer import answer
from apportion.route.ask.answered import complete
from apportion.route.ask.pipelines import asked_as, build_request
from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import Setup, require_trained_on
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.evaluate import evaluate_router
from apportion.route.evaluation.field import EvaluationPlan
from apportion.route.evaluation.report import write_evaluation
from apportion.route.index.bm25 import Bm25Index
from apportion.route.index.build import build_index
from apportion.route.index.corpus import read_corpus
from apportion.route.llm.connect import LLMSettings, connect
from apportion.route.profile.scoring import score
from apportion.route.router.file import save_router
from apportion.route.router.report import training_record
from apportion.route.router.router import Router
from apportion.route.router.train import train_router
from apportion.route.router.utility import Weights

SHOWN_WEIGHTS = ((0.05, 0.0), (0.1, 0.1), (0.2, 0.1), (0.5, 0.5))


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """How many fresh questions are answered, and at which weights."""

    questions: int = 36
    token_weight: float = 0.1
    latency_weight: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StrategyRow:
    """A strategy at a pair of weights: means over the recorded test questions, probes counted."""

    token_weight: float
    latency_weight: float
    strategy: str
    quality: float
    tokens: float
    latency_ms: float
    utility: float


@dataclass(frozen=True, slots=True)
class Means:
    """Of some answers, a question."""

    quality: float
    tokens: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Live:
    """Fresh questions answered now, by the router and always by RAG+CoT."""

    questions: int
    token_weight: float
    latency_weight: float
    router: Means
    always: Means
    routes: dict[str, int]
    drafts_reused: int


@dataclass(frozen=True, slots=True)
class RouteShown:
    """The table of strategies, the live answers, and where things lie."""

    first_line: str
    rows: tuple[StrategyRow, ...]
    live: Live
    files: dict[str, str] = field(default_factory=dict)


def show_route(out: Path, plan: RoutePlan) -> RouteShown:
    """Index the world's corpus, train on the recorded train split, judge on the test split, answer live.

    Args:
        out: folder; index, router and evaluation lie in it afterwards.
    """
    print("index, router and its evaluation ...", file=sys.stderr)
    write_corpus(out / "corpus.jsonl")
    build_index(read_corpus(out / "corpus.jsonl"), out / "index")
    seen, test = recorded("train"), recorded("test")
    trained = train_router(seen, seed=plan.seed)
    save_router(out / "router", trained.router, training_record(trained))
    judge = EvaluationPlan(seed=plan.seed, ablations=False, leave_out=False)
    saved = write_evaluation(out / "evaluation", evaluate_router(test, judge, train=seen, router=trained.router))
    found = live(trained.router, out / "index", plan)
    files = {
        "router": str(out / "router"),
        "report": str(out / "evaluation" / "report.md"),
        "frontier": str(out / "evaluation" / "frontier.png"),
    }
    return RouteShown(saved["summary"]["first_line"], strategy_rows(saved), found, files)


def strategy_rows(saved: Json) -> tuple[StrategyRow, ...]:
    """The four static strategies, router and oracle at a few of the evaluation's weights."""
    found: list[StrategyRow] = []
    for at in saved["weights"]:
        pair = (at["token_weight"], at["latency_weight"])
        if pair not in SHOWN_WEIGHTS:
            continue
        named = {**{name: at["strategies"][name] for name in STRATEGIES}, "router": at["router"]}
        for name, row in {**named, "oracle": at["oracle"]}.items():
            kept = {key: row[key] for key in ("quality", "tokens", "latency_ms", "utility")}
            found.append(StrategyRow(*pair, name, **kept))
    return tuple(found)


def live(router: Router, index: Path, plan: RoutePlan) -> Live:
    """Answer fresh questions with the shipped model, one at a time, as a server would."""
    asked = fresh_questions(plan.questions)
    weights = Weights(plan.token_weight, plan.latency_weight)
    settings = LLMSettings(str(model_path()), batch_size=1, device="cpu", dtype="float32")
    with closing(connect(settings)) as llm:
        setup = Setup(llm, Bm25Index.open(index), load_prompts(prompts_path()))
        require_trained_on(router.source, setup)
        routed, always = list[Spent](), list[Spent]()
        routes, reused = Counter[str](), 0
        with progress("live", len(asked), "questions") as advance:
            for question in asked:
                found = answer(question.question, router, setup, weights)
                routes[found.strategy] += 1
                reused += found.draft_reused
                routed.append((score(found.text, question.answers).f1, found.tokens, found.latency_ms))
                always.append(_always(question, setup))
                advance()
    shares = {name: routes[name] for name in STRATEGIES}
    return Live(len(asked), weights.token, weights.latency, _means(routed), _means(always), shares, reused)


Spent = tuple[float, float, float]  # quality, tokens, milliseconds of one answer


def _means(answers: list[Spent]) -> Means:
    quality, tokens, latency_ms = np.mean(answers, axis=0).tolist()
    return Means(quality, tokens, latency_ms)


def _always(question: Question, setup: Setup) -> Spent:
    """Quality, tokens and latency of RAG+CoT."""
    start = time.perf_counter()
    passages = setup.retriever.search(question.question, setup.k).passages
    request = build_request(setup.prompts, "rag+cot", question.question, passages)
    asked = asked_as("rag+cot", passages), question.question, request
    found = complete(setup.llm, setup.prompts, [asked])[0]
    spent_ms = (time.perf_counter() - start) * 1000
    tokens = found.total.prompt_tokens + found.total.completion_tokens
    return score(found.extracted.answer, question.answers).f1, tokens, spent_ms


def table_text(rows: tuple[StrategyRow, ...]) -> str:
    """The table of strategies for people."""
    lines = [f"{'strategy':<10}{'quality':>9}{'tokens':>9}{'ms':>8}{'utility':>9}"]
    pair: tuple[float, float] | None = None
    for row in rows:
        if (row.token_weight, row.latency_weight) != pair:
            pair = (row.token_weight, row.latency_weight)
            lines.append(f"token weight {pair[0]:g}, latency weight {pair[1]:g}:")
        lines.append(
            f"  {row.strategy:<8}{row.quality:>9.3f}{row.tokens:>9.1f}{row.latency_ms:>8.0f}{row.utility:>9.3f}"
        )
    return "\n".join(lines)


def live_text(found: Live) -> str:
    """The live answers for people."""
    routes = ", ".join(f"{name} {count}" for name, count in found.routes.items())
    return (
        f"{found.questions} fresh questions answered live at weights ({found.token_weight:g}, "
        f"{found.latency_weight:g}): {routes}\n"
        f"  router          {_means_text(found.router)}\n"
        f"  always RAG+CoT  {_means_text(found.always)}"
    )


def _means_text(means: Means) -> str:
    return f"quality {means.quality:.3f}, {means.tokens:.0f} tokens, {means.latency_ms:.0f} ms"
