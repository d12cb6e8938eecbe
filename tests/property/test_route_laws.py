"""Laws of splitting, statistics, cutting, scoring and features, for any input."""

import math
import re
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from apportion.route.ask.extraction import extract
from apportion.route.ask.features import WORD_PREFIX
from apportion.route.ask.pipelines import build_request
from apportion.route.ask.probes import question_features, retrieval_features
from apportion.route.ask.prompts import load_prompts
from apportion.route.index.collection import Collection
from apportion.route.index.corpus import Passage
from apportion.route.index.split import split_text
from apportion.route.llm.cut import cut, fit
from apportion.route.llm.protocol import Completion, Request, split_thinking
from apportion.route.llm.response import visible_span
from apportion.route.profile.scoring import score

PROMPTS = load_prompts()
texts = st.text(alphabet=st.sampled_from("ab.!? \n\té#"), max_size=200)
passages = st.builds(Passage, id=st.text(max_size=3), title=st.text(max_size=5), text=st.text(max_size=20))


@given(texts, st.integers(1, 40))
def test_splitting_loses_white_space_only_and_keeps_the_limit(text: str, limit: int) -> None:
    pieces = split_text(text, limit)
    assert all(0 < len(piece) <= limit and piece == piece.strip() for piece in pieces)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)


@given(st.lists(passages, max_size=6), passages)
def test_adding_and_removing_restores_the_collection(known: list[Passage], extra: Passage) -> None:
    one, other = Collection(), Collection()
    for passage in known:
        one.add(passage, passage.text.split())
    for passage in [extra, *reversed(known)]:
        other.add(passage, passage.text.split())
    other.remove(extra, extra.text.split())
    assert one == other
    assert Collection.from_json(one.to_json(), dict(one.term_counts)) == one


@given(st.lists(passages, min_size=1, max_size=6), st.lists(st.text(max_size=3), min_size=1, max_size=5))
def test_likelihood_of_a_query_is_a_sum_of_log_probabilities(known: list[Passage], query: list[str]) -> None:
    collection = Collection()
    for passage in known:
        collection.add(passage, passage.text.split())
    value = collection.log_likelihood(query)
    assert value is not None
    assert math.isfinite(value)
    assert value <= 0
    single = [collection.log_likelihood([term]) or 0.0 for term in query]
    assert math.isclose(value, sum(single), rel_tol=1e-9, abs_tol=1e-9)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    user = draw(st.text(max_size=40))
    ends = sorted([draw(st.integers(0, len(user))), draw(st.integers(0, len(user)))])
    return Request(user, expendable=(ends[0], ends[1]))


@given(requests(), st.integers(0, 60))
def test_cutting_takes_the_passages_first_and_then_the_start(request: Request, characters: int) -> None:
    start, end = request.expendable
    shorter = cut(request, characters)
    assert len(shorter.user) == max(0, len(request.user) - characters)
    if characters <= end - start:
        assert shorter.user.startswith(request.user[:start])
        assert shorter.user.endswith(request.user[end:])
    else:
        assert (request.user[:start] + request.user[end:]).endswith(shorter.user)


@given(requests(), st.integers(0, 50))
def test_fitting_cuts_no_more_than_needed(request: Request, limit: int) -> None:
    fitted = fit(request, lambda one: len(one.user), limit)
    assert len(fitted.user) == min(limit, len(request.user))


@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_scores_are_between_0_and_1_and_gold_scores_1(answer: str, gold: list[str]) -> None:
    found = score(answer, gold)
    assert 0 <= found.em <= found.f1 + 1e-12 <= 1 + 1e-9
    assert score(answer, [*gold, "unlikely"]).f1 >= found.f1
    assert score("Rome 5", ["rome, 5!"]) == score("rome, 5!", ["Rome 5"])


@given(st.lists(st.floats(-1e6, 1e6), max_size=120), st.floats(0.1, 100))
@example([2.0, 5e-324], 1.0)
@example([5e-324, -1e6], 1.0)
def test_retrieval_features_are_finite_and_nqc_has_no_unit(scores: list[float], unit: float) -> None:
    falling = sorted(scores, reverse=True)
    found = retrieval_features(falling, -5.0)
    assert all(math.isfinite(value) for value in found.values())
    if len(falling) > 1 and falling[0] > 1e-3:
        scaled = retrieval_features([value * unit for value in falling], -5.0)
        assert math.isclose(scaled["nqc_top1_k10"], found["nqc_top1_k10"], rel_tol=1e-6, abs_tol=1e-9)


@given(st.text(max_size=100))
def test_question_features_never_fail(question: str) -> None:
    found = question_features(question)
    assert all(math.isfinite(value) for value in found.values())
    assert all(value >= 0 for name, value in found.items() if not name.startswith(WORD_PREFIX))


@settings(max_examples=50)
@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(["direct", "rag", "cot", "rag+cot"]))
def test_any_text_can_be_asked_and_read(question: str, reply: str, strategy: str) -> None:
    request = build_request(PROMPTS, strategy, question, [Passage("1", question, reply)])
    assert question in request.user
    thought, visible = split_thinking(reply)
    found = extract(PROMPTS.of(strategy), Completion(visible, 1, 1, 0.0, thinking_text=thought))
    assert found.answer == found.answer.strip()


@given(st.lists(st.text(alphabet="ab ", min_size=1, max_size=3), min_size=1, max_size=8), st.data())
def test_the_visible_span_covers_the_visible_text(tokens: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(tokens) - 1))
    visible = "".join(tokens[start:]).strip()
    first, last = visible_span(tokens, visible)
    assert visible in "".join(tokens[first:last])
    assert Counter(tokens[first:last]) <= Counter(tokens)
