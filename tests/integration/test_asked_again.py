"""Reasoning that ends without an answer: one more turn, the same in `ask`, `profile` and `serve`, all of it counted."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as parquet
import pytest

from apportion.core.errors import PromptTooLongError
from apportion.core.log import AppendLog
from apportion.route.answer import answer
from apportion.route.ask import answered
from apportion.route.ask.answered import complete
from apportion.route.ask.pipelines import build_request
from apportion.route.ask.prompts import AGAIN, Prompts, load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.index import Bm25Index, Passage, build_index
from apportion.route.llm.local import LocalLLM
from apportion.route.llm.openai import OpenAILLM
from apportion.route.llm.protocol import Completion, Request
from apportion.route.profile import Question, run_profile
from apportion.route.profile.preflight import look
from apportion.route.profile.records import Measured, question_key
from apportion.route.router import Weights
from apportion.serve.turns import ASKED_AGAIN
from tests.integration.serving import logged, serving
from tests.integration.tiny_model import make_tiny_model
from tests.integration.upstream_stub import Json, Stub, upstream
from tests.routings import routing, static_router

BARE = "Berthold founded it"  # no rule finds an answer here
QUESTIONS = [Question(f"q{n}", "d", f"Who founded Bern {n}?", ("Berthold V",)) for n in range(4)]
ASKED = [{"role": "user", "content": "Who founded Bern?"}]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with upstream() as found:
        found.reply = reply
        yield found


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Bm25Index:
    passages = [Passage("p", "Bern", "Bern was founded by Berthold V.")]
    return build_index(passages, tmp_path_factory.mktemp("corpus") / "index")


@pytest.fixture
def setup(stub: Stub, index: Bm25Index) -> Iterator[Setup]:
    llm = OpenAILLM(stub.url, concurrency=2, retries=0, backoff_s=0.001)
    yield Setup(llm, index, load_prompts(), k=1)
    llm.close()


def reply(messages: list[Json]) -> str:
    """Forgets the answer's line where it reasons about an even Bern, or about none by number."""
    asked = str(messages[-1]["content"])
    if asked == AGAIN["short"]:
        return "Answer: Berthold V"
    if "Reason first" not in asked:
        return "Berthold V"
    number = re.findall(r"Bern (\d)", asked)
    return BARE if not number or int(number[-1]) % 2 == 0 else f"{BARE}.\nAnswer: Berthold V"


def second_turns(stub: Stub) -> list[Json]:
    return [body for body in stub.bodies if body["messages"][-1]["content"] == AGAIN["short"]]


def rows_of(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["question_id"], row["strategy"]): row for row in parquet.read_table(path).to_pylist()}


def test_a_profile_asks_again_where_reasoning_has_no_answer_and_counts_both_turns(
    stub: Stub, setup: Setup, tmp_path: Path
) -> None:
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet", unloaded=0)
    assert {name: one.asked_again for name, one in report.pipelines.items()} == {
        "direct": 0, "rag": 0, "cot": 2, "rag+cot": 2
    }  # fmt: skip
    assert report.unmatched == 0
    rows = rows_of(tmp_path / "p.parquet")
    again, found = rows["q0", "cot"], rows["q1", "cot"]
    assert (again["answer"], again["rule"], again["f1"]) == ("Berthold V", "asked again", 1.0)
    assert (again["completion"], again["again"]) == (BARE, "Answer: Berthold V")
    assert (found["again"], found["rule"]) == (None, "pattern")
    first = next(body for body in stub.bodies if _is_first(body, "Bern 0", "[1] Bern"))
    second = next(body for body in second_turns(stub) if _is_first({"messages": body["messages"][:-2]}, "Bern 0"))
    sizes = [-(-sum(len(one["content"]) for one in body["messages"]) // 4) for body in (first, second)]
    assert again["prompt_tokens"] == sum(sizes)
    assert again["completion_tokens"] == -(-len(BARE) // 4) + -(-len("Answer: Berthold V") // 4)
    assert second["messages"][:-2] == [first["messages"][0], first["messages"][-1]], "without the examples"
    assert second["messages"][-2] == {"role": "assistant", "content": BARE}
    assert second["max_tokens"] == 32
    assert len(second_turns(stub)) == 4


def _is_first(body: Json, number: str, without: str = "[1] Bern") -> bool:
    last = body["messages"][-1]["content"]
    return number in last and "Reason first" in last and without not in last


def test_what_was_recorded_before_it_could_be_asked_again_is_asked_anew_and_nothing_else(
    stub: Stub, setup: Setup, tmp_path: Path
) -> None:
    run_profile(QUESTIONS, setup, tmp_path / "p.parquet", unloaded=0)
    log = tmp_path / "p.parquet.log"
    lines = [json.loads(line[9:]) for line in log.read_text().splitlines()]
    old = [_as_before(one) for one in lines[1:]]
    with AppendLog(tmp_path / "old.parquet.log", lines[0], resume=False) as written:
        for one in old:
            written.append(one)
    stub.bodies.clear()
    report = run_profile(QUESTIONS, setup, tmp_path / "old.parquet", resume=True, unloaded=0)
    assert (report.resumed, len(stub.bodies), len(second_turns(stub))) == (12, 8, 4)
    assert rows_of(tmp_path / "old.parquet")["q0", "cot"]["rule"] == "asked again"


def test_a_second_turn_that_the_server_failed_is_asked_for_with_resume(
    stub: Stub, setup: Setup, tmp_path: Path
) -> None:
    def failing(messages: list[Json]) -> str:
        if messages[-1]["content"] == AGAIN["short"]:
            raise RuntimeError("the stub fails, as it was told")
        return reply(messages)

    stub.reply = failing
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet", unloaded=0)
    assert (report.failed, report.unmatched, report.pipelines["cot"].answers) == (0, 4, 4)
    assert any("asked for once more, which failed" in said for said in report.weaker)
    stub.reply = reply
    stub.bodies.clear()
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet", resume=True, unloaded=0)
    assert (report.resumed, len(stub.bodies), len(second_turns(stub))) == (12, 8, 4)
    assert (report.unmatched, report.weaker) == (0, ())


def test_an_empty_second_turn_counts_as_one_before_the_run_as_after_it() -> None:
    record = {"question": question_key(QUESTIONS[0]), "strategy": "cot", "answer": "", "rule": "last line", "cut": 0}
    record |= {"completion": BARE, "finish": "stop", "asked_as": "cot", "again": ""}
    found = look(QUESTIONS[:1], Measured({(record["question"], "cot"): record}), has_chat_template=True)
    assert found.shares["cot"].asked_again == 1.0


def _as_before(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a version wrote it that asked once."""
    if record.get("again") is not None:
        record = {**record, "answer": BARE, "rule": "last line"}
    return {name: value for name, value in record.items() if name != "again"}


def test_ask_says_that_it_asked_again_and_what_that_cost(
    stub: Stub, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answer("Who founded Bern?", static_router("cot"), setup, Weights(0.1))
    assert (found.text, found.completion) == ("Berthold V", f"{BARE}\n\nAnswer: Berthold V")
    assert [call.purpose for call in found.calls] == ["answer", "asked again"]
    assert found.tokens == sum(call.prompt_tokens + call.completion_tokens for call in found.calls)
    assert any("asked for once more" in said for said in found.weaker)
    assert not any("max_tokens" in said for said in found.weaker)
    monkeypatch.setattr(answered, "_said", lambda llm, turns: [Completion("Answer: Bert", 9, 3, 1.0, finish="length")])
    found = answer("Who founded Bern?", static_router("cot"), setup, Weights(0.1))
    assert "the answer was ended by max_tokens" in found.weaker
    monkeypatch.undo()
    stub.reply = lambda messages: "He did.\nAnswer: Berthold V"
    found = answer("Who founded Bern?", static_router("cot"), setup, Weights(0.1))
    assert [call.purpose for call in found.calls] == ["answer"]
    assert not any("once more" in said for said in found.weaker)


@pytest.mark.parametrize(
    ("second", "found", "rule"),
    [("Berthold.", "Berthold", "asked again"), ("I had said\nso much before", BARE, "last line")],
)
def test_a_second_turn_is_read_as_one_short_line_or_not_at_all(
    stub: Stub, setup: Setup, second: str, found: str, rule: str
) -> None:
    stub.reply = lambda messages: second if messages[-1]["content"] == AGAIN["short"] else BARE
    said = ask(setup, setup.prompts)
    assert (said.extracted.answer, said.extracted.rule, said.second is not None) == (found, rule, True)


def ask(setup: Setup, prompts: Prompts, strategy: str = "cot"):
    request = build_request(prompts, strategy, "Who founded Bern?", ())
    return complete(setup.llm, prompts, [(strategy, "Who founded Bern?", request)])[0]


def test_a_server_that_refuses_the_second_turn_leaves_the_first_and_that_is_said(stub: Stub, setup: Setup) -> None:
    prompts = replace(load_prompts(), cot=replace(load_prompts().cot, examples=(), kinds={}))
    stub.refused = {"assistant": "roles must alternate otherwise"}
    said = ask(setup, prompts)
    assert (said.extracted.rule, said.second) == ("last line", None)
    assert "roles must alternate" in said.total.weaker[0]


def test_reasoning_cut_by_its_limit_is_asked_for_its_answer_and_thinking_alone_is_not(stub: Stub, setup: Setup) -> None:
    brief = replace(load_prompts(), cot=replace(load_prompts().cot, max_tokens=3, kinds={}))
    stub.reply = lambda messages: "Yes." if messages[-1]["content"] == AGAIN["short"] else "word " * 40
    said = ask(setup, brief)
    assert (said.first.finish, said.extracted.answer) == ("length", "Yes")
    stub.reply, before = (lambda messages: "<think> still at it, and on and on"), len(stub.bodies)
    assert ask(setup, brief).second is None
    assert len(stub.bodies) == before + 1


def test_an_empty_text_never_asks_and_only_a_text_of_ones_own_changes_the_digest(stub: Stub, setup: Setup) -> None:
    shipped = load_prompts()
    assert shipped.digest == "c5de813c70c82540"  # profiles and routers made before there were second turns
    never, other = (replace(shipped, cot=replace(shipped.cot, again=text, kinds={})) for text in ("", "Which?"))
    plain = replace(shipped, cot=replace(shipped.cot, kinds={}))
    assert len({plain.digest, never.digest, other.digest}) == 3
    assert ask(setup, never).second is None
    ask(setup, other)
    assert stub.asked()[-1] == "Which?"


class Counting:
    """A model that counts how many requests each call carries; the long ones fail where it is told so."""

    model = name = "counting"
    has_logprobs, logprobs_reason, concurrency, batch_size = False, "", 1, 8

    def __init__(self, too_long: str = "") -> None:
        self.sizes: list[int] = []
        self.too_long = too_long

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.sizes.append(len(requests))
        if self.too_long and any(one.then and self.too_long in one.user for one in requests):
            raise PromptTooLongError("the prompt is too long")
        return [Completion("Answer: x" if one.then else BARE, 5, 2, 1.0) for one in requests]

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(("too_long", "sizes"), [("", [3, 3]), ("B", [3, 3, 1, 1, 1])])
def test_second_turns_are_one_batch_and_one_that_fails_spoils_no_other(too_long: str, sizes: list[int]) -> None:
    prompts, llm = load_prompts(), Counting(too_long)
    asked = [("cot", text, build_request(prompts, "cot", text, ())) for text in ("A", "B", "C")]
    found = complete(llm, prompts, asked)
    assert llm.sizes == sizes
    failed = [one.weaker != () for one in found]
    assert not any(one.unserved for one in found), "a prompt that is too long is so the next time too"
    assert failed == [False, bool(too_long), False]
    assert [one.total.prompt_tokens for one in found] == [10, 5 if too_long else 10, 10]


def test_a_model_in_this_process_is_shown_its_own_reasoning(tmp_path: Path) -> None:
    llm = LocalLLM.open(str(make_tiny_model(tmp_path / "m")), device="cpu", batch_size=4)
    first = Request("Capital?", max_tokens=4)
    second = replace(first, said="city city", then="city")
    ids = llm.render(second)
    assert len(ids) > len(llm.render(first)) + 3
    assert llm.complete([second])[0].prompt_tokens == len(ids)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_server_sends_the_answer_after_the_reasoning(stub: Stub, tmp_path: Path, streamed: bool) -> None:
    with serving(stub, routing(tmp_path, static_router("cot")), keep_prompts=True) as client:
        text, finish, usage = said(client, streamed)
        decision = logged(client)[0]
    assert text == decision["answer"] == f"{BARE}\n\nAnswer: Berthold V"
    assert finish == ["stop"]
    assert len(stub.bodies) == 2
    tokens = [-(-sum(len(one["content"]) for one in body["messages"]) // 4) for body in stub.bodies]
    assert usage["prompt_tokens"] == sum(tokens) == decision["prompt_tokens"]
    assert usage["completion_tokens"] == -(-len(BARE) // 4) + -(-len("Answer: Berthold V") // 4)
    assert "asked for once more" in json.dumps(decision)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("case", ["found", "refused", "limited"])
def test_a_server_that_needs_or_gets_no_second_turn_sends_the_first_alone(
    stub: Stub, tmp_path: Path, streamed: bool, case: str
) -> None:
    first = f"{BARE}.\nAnswer: Berthold V" if case == "found" else BARE

    def failing(messages: list[Json]) -> str:
        if messages[-1]["content"] == AGAIN["short"]:
            raise RuntimeError("the stub fails, as it was told")
        return first

    stub.reply = failing
    options = {"max_tokens": -(-len(BARE) // 4)} if case == "limited" else {}
    with serving(stub, routing(tmp_path, static_router("cot"))) as client:
        text, finish, _ = said(client, streamed, **options)
        decision = logged(client)[0]
    assert (text, finish) == (first, ["stop"])
    assert len(stub.bodies) == (2 if case == "refused" else 1)
    assert ("that failed" in json.dumps(decision)) == (case == "refused")
    assert decision["status"] == "ok"


@pytest.mark.parametrize("own", [None, True])
def test_thinking_is_off_in_a_servers_second_turn_unless_the_client_wants_it(
    stub: Stub, tmp_path: Path, own: bool | None
) -> None:
    known = routing(tmp_path, static_router("cot"))
    known = replace(known, prompts=replace(load_prompts(), cot=replace(load_prompts().cot, thinking=True, kinds={})))
    options = {} if own is None else {"extra_body": {"chat_template_kwargs": {"enable_thinking": own}}}
    with serving(stub, known) as client:
        client.chat.completions.create(model="auto", messages=ASKED, **options)
    switches = [body["chat_template_kwargs"]["enable_thinking"] for body in stub.bodies]
    assert switches == [True, own is not None]


def test_a_servers_second_turn_that_had_to_be_cut_to_the_context_says_so(stub: Stub, tmp_path: Path) -> None:
    stub.reply = lambda messages: "Answer: x" if messages[-1]["content"] == AGAIN["short"] else "word " * 400
    earlier = [{"role": "user", "content": "u" * 3000}, {"role": "assistant", "content": "a" * 3000}]
    with serving(stub, routing(tmp_path, static_router("cot"))) as client:
        whole = client.chat.completions.create(model="auto", messages=[*earlier, *ASKED]).model_dump()
        assert "cut to the context" not in json.dumps(whole["apportion"]["weaker"])
        stub.context = sum(len(one["content"]) for one in stub.bodies[0]["messages"]) + 50
        whole = client.chat.completions.create(model="auto", messages=[*earlier, *ASKED]).model_dump()
    assert whole["apportion"]["answer"] == "x"
    cut = "cut to the context where it was asked once more: the oldest 2 turns of the conversation"
    assert cut in whole["apportion"]["weaker"]


def said(client: openai.OpenAI, streamed: bool, **options: Any) -> tuple[str, list[str], dict[str, Any]]:
    """Text, ends and usage of an answer."""
    if not streamed:
        whole = client.chat.completions.create(model="auto", messages=ASKED, **options).model_dump()
        if "Answer" in whole["choices"][0]["message"]["content"]:
            assert whole["apportion"]["answer"] == "Berthold V"
        return whole["choices"][0]["message"]["content"], [whole["choices"][0]["finish_reason"]], whole["usage"]
    asked = {"model": "auto", "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}}
    chunks = [one.model_dump() for one in client.chat.completions.create(**asked, **options)]
    told = [one["apportion"]["weaker"] for one in chunks if one.get("apportion")]
    assert ("once more" in json.dumps(told[-1])) == (ASKED_AGAIN in json.dumps(logged(client)[-1]["weaker"]))
    choices = [one["choices"][0] for one in chunks if one["choices"]]
    ends = [one["finish_reason"] for one in choices if one["finish_reason"]]
    assert choices[-1]["finish_reason"] == ends[-1]
    return "".join(one["delta"]["content"] or "" for one in choices), ends, chunks[-1]["usage"]
