"""How the server stands what operators do to it: limits, keys, times, logs, metrics, the shadow."""

import asyncio
import concurrent.futures
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from apportion.route.router.price import Price
from apportion.route.router.utility import Scale
from apportion.serve import Routing, Timeouts
from apportion.serve.decision_log import read_decisions
from tests.integration.serving import ASKED, KEY, QUESTION, get, logged, post, serving
from tests.integration.upstream_stub import Stub


def test_keys_open_what_they_should(stub: Stub, known: Routing) -> None:
    with serving(stub, known, keys=(KEY, "another-key-of-this-test")) as client:
        client.chat.completions.create(**ASKED)
        for key in ("wrong-key-of-this-test", KEY[:-1], "x"):
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key=key).chat.completions.create(**ASKED)
        for path, expected in (("/health", 200), ("/metrics", 200), ("/decisions", 401), ("/v1/models", 401)):
            assert get(client, path, key="")[0] == expected, path


def test_a_full_queue_says_when_to_come_back(stub: Stub, known: Routing) -> None:
    release, refused, answers = threading.Event(), list[openai.RateLimitError](), list[Any]()
    with serving(stub, known, concurrency=1, queue=1) as client:
        stub.reply = lambda messages: "x" if release.wait(60) else "late"

        def ask() -> None:
            try:
                answers.append(client.chat.completions.create(model="direct", messages=QUESTION))
            except openai.RateLimitError as error:
                refused.append(error)
            if len(refused) == 2:
                release.set()

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            for _ in range(4):
                threads.submit(ask)
        assert (len(answers), len(refused)) == (2, 2), "one answers, one waits, two are told"
        assert int(refused[0].response.headers["retry-after"]) >= 1
        assert refused[0].code == "queue_full"
        client.chat.completions.create(model="direct", messages=QUESTION)


class _Slow:
    """A retriever that takes its time, or fails."""

    def __init__(self, inner: Any, pause_s: float, error: Exception | None = None) -> None:
        self._inner, self._pause_s, self._error = inner, pause_s, error
        self.corpus_digest = inner.corpus_digest

    def search(self, question: str, k: int, *, depth: int = 100) -> Any:
        time.sleep(self._pause_s)
        if self._error:
            raise self._error
        return self._inner.search(question, k, depth=depth)


@pytest.mark.parametrize(
    ("pause_s", "limit_s", "error", "said"),
    [(0.5, 0.1, None, "retrieval took over 0.1 s"), (0.0, 60.0, OSError("gone"), "retrieval failed (OSError)")],
)
def test_retrieval_down_is_answered_without_and_marked(
    stub: Stub, known: Routing, pause_s: float, limit_s: float, error: Exception | None, said: str
) -> None:
    down = replace(known, retriever=_Slow(known.retriever, pause_s, error))
    stub.logprobs = -2.0  # so that the router wants passages
    with serving(stub, down, timeouts=Timeouts(search_s=limit_s)) as client:
        found = client.chat.completions.create(**ASKED).model_dump()["apportion"]
    assert found["route"] == "direct"
    assert any(said in one for one in found["weaker"])
    assert found["sources"] == []


def test_a_slow_draft_is_decided_without_and_marked(stub: Stub, known: Routing) -> None:
    with serving(stub, known, timeouts=Timeouts(draft_s=0.2)) as client:
        stub.pause_s = 0.4
        found = client.chat.completions.create(**ASKED).model_dump()["apportion"]
    assert (found["route"], found["tier"]) == ("rag", "lean")
    assert any("the draft took over 0.2 s" in one for one in found["weaker"])


def test_a_slow_decision_keeps_its_stream_alive(stub: Stub, known: Routing) -> None:
    stub.pause_s = 2.0
    with serving(stub, known, timeouts=Timeouts(keep_alive_s=0.1)) as client:
        with client.chat.completions.with_streaming_response.create(stream=True, **ASKED) as raw:
            assert raw.headers["x-apportion-route"] == "pending"
            text = raw.read().decode()
        assert text.count(": still deciding") >= 3
        assert '"route":"direct"' in text
        assert text.endswith("data: [DONE]\n\n")
        stub.pause_s = 0.2
        chunks = list(client.chat.completions.create(stream=True, **ASKED))
        assert chunks[-1].choices[0].finish_reason == "stop"
        stub.fail = (500, {"error": {"message": "out of memory"}})
        with pytest.raises(openai.APIError, match="out of memory"):
            list(client.chat.completions.create(stream=True, **ASKED))


def test_decisions_are_logged_without_prompts(stub: Stub, known: Routing, tmp_path: Path) -> None:
    path = tmp_path / "log" / "decisions.sqlite"
    with serving(stub, known, decisions=path) as client:
        first = client.chat.completions.create(**ASKED).model_dump()["apportion"]["decision_id"]
        list(client.chat.completions.create(model="rag-cot", messages=QUESTION, stream=True))
        logged(client, 2)
        status, found = get(client, f"/decisions/{first}")
        assert (status, found["route"], found["status"]) == (200, "direct", "ok")
        assert set(found["features"]) >= {"hits", "draft_nll_mean"}
        assert found["draft_tokens"] == found["prompt_tokens"] + found["completion_tokens"]
        assert found["wasted_tokens"] == 0, "the draft is the answer"
        assert sum(found["likely"].values()) == pytest.approx(1)
        assert get(client, "/decisions/dec-nothing")[0] == 404
        _, listed = get(client, "/decisions?limit=1")
        assert [one["route"] for one in listed["data"]] == ["rag+cot"]
        post = client.post(f"/../decisions/{first}/feedback", body={"score": 1}, cast_to=object)
        assert post == {"id": first, "score": 1.0}
    rows = read_decisions(path)
    assert [(one["route"], one["score"]) for one in rows] == [("direct", 1.0), ("rag+cot", None)]
    assert b"founded" not in path.read_bytes()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_prompts_are_logged_when_asked_for(stub: Stub, known: Routing, tmp_path: Path) -> None:
    path = tmp_path / "decisions.sqlite"
    with serving(stub, known, decisions=path, keep_prompts=True) as client:
        client.chat.completions.create(**ASKED)
    assert read_decisions(path)[0]["question"] == "Who founded Bern?"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("asked", [{}, {"model": "cot"}, {"model": "rag"}, {"tools": [], "n": 2}])
def test_a_streamed_answer_is_logged_as_a_plain_one_is(
    stub: Stub, known: Routing, tmp_path: Path, asked: dict[str, Any], kept: bool
) -> None:
    path = tmp_path / "decisions.sqlite"
    stub.reply = lambda messages: '<think>Who was it?</think>It was "Berthold",\nas all say.\nAnswer: Berthold'
    with serving(stub, known, decisions=path, keep_prompts=kept) as client:
        for stream in (False, True):
            status, said = post(client, "/v1/chat/completions", {**ASKED, **asked, "stream": stream})
            assert status == 200, said
            logged(client, 1 + stream)
    said = 'It was "Berthold",\nas all say.\nAnswer: Berthold' if kept else None
    assert [one["answer"] for one in read_decisions(path)] == [said, said]


def test_what_a_client_that_left_was_streamed_is_logged(stub: Stub, known: Routing, tmp_path: Path) -> None:
    stub.token_s, stub.reply = 0.05, lambda messages: "word " * 200
    with serving(stub, known, keep_prompts=True) as client:
        with client.chat.completions.create(model="cot", messages=QUESTION, stream=True) as stream:
            for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        row = logged(client)[0]
    assert row["status"] == "cancelled"
    assert ("word " * 200).startswith(row["answer"])
    assert 0 < len(row["answer"]) < 1000


def test_a_log_that_cannot_be_written_loses_rows_and_no_answers(stub: Stub, known: Routing, tmp_path: Path) -> None:
    path = tmp_path / "decisions.sqlite"
    with serving(stub, known, decisions=path) as client:
        blocker = sqlite3.connect(path, isolation_level=None)
        state = client.state  # type: ignore[attr-defined]
        state.log.path = tmp_path  # a folder: every write fails from now on, as on a full disk
        for _ in range(3):
            assert client.chat.completions.create(**ASKED).choices
        deadline = time.monotonic() + 5
        while state.log.lost < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert state.log.lost == 3
        _, said = get(client, "/ready")
        assert "OperationalError" in said["decision_log"]
        assert "apportion_decisions_lost 3.0" in get(client, "/metrics")[1]
        state.log.path = path
        client.chat.completions.create(**ASKED)
        blocker.close()
    assert len(read_decisions(path)) == 1


def test_feedback_that_is_no_score_is_refused(stub: Stub, known: Routing) -> None:
    with serving(stub, known) as client:
        client.chat.completions.create(**ASKED)
        name = logged(client)[0]["id"]
        for score in (10**400, -1, 1.01, True, "1", None, [1]):
            status, said = post(client, f"/decisions/{name}/feedback", {"score": score})
            assert (status, said["error"]["param"]) == (400, "score"), score
        assert logged(client)[0]["score"] is None


def test_odd_characters_are_logged_and_spoil_nothing(stub: Stub, known: Routing, tmp_path: Path) -> None:
    path = tmp_path / "decisions.sqlite"
    stub.reply = lambda messages: "1191"
    with serving(stub, known, decisions=path, keep_prompts=True) as client:
        asked = {"model": "direct", "messages": [{"role": "user", "content": "Who founded \ud83d Bern?"}]}
        odd = post(client, "/v1/chat/completions", asked)[1]["apportion"]["decision_id"]
        assert post(client, f"/decisions/{odd}/feedback", {"score": 1, "comment": "\ud83d x"})[0] == 200
        client.chat.completions.create(**ASKED)
        log = client.state.log  # type: ignore[attr-defined]
    first, second = read_decisions(path)
    assert (first["question"], first["comment"]) == ("Who founded \\ud83d Bern?", "\\ud83d x")
    assert (first["score"], second["question"], log.lost) == (1.0, "Who founded Bern?", 0)


def test_metrics_count_tokens_and_savings(stub: Stub, known: Routing) -> None:
    with serving(stub, known) as client:
        client.chat.completions.create(**ASKED)
        list(client.chat.completions.create(stream=True, **ASKED))
        logged(client, 2)
        text = get(client, "/metrics")[1]
    assert 'apportion_routes_total{reason="router",route="direct"} 2.0' in text
    assert 'apportion_requests_total{path="/v1/chat/completions",status="200"} 2.0' in text
    saved = next(line for line in text.splitlines() if line.startswith("apportion_saved_tokens_total"))
    assert 800 < float(saved.split()[1]) < 1000, "two answers of some 40 tokens against 500 each"


def test_what_is_unknown_is_not_saved(stub: Stub, known: Routing) -> None:
    stub.usage = False
    with serving(stub, known) as client:
        list(client.chat.completions.create(stream=True, **ASKED))
        logged(client)
        assert client.state.metrics.totals()["saved_tokens"] == 0  # type: ignore[attr-defined]


def test_a_file_of_decisions_that_broke_is_said_without_saying_where_it_is(
    stub: Stub, known: Routing, tmp_path: Path
) -> None:
    path = tmp_path / "decisions.sqlite"
    with serving(stub, known, decisions=path) as client:
        kept = client.chat.completions.create(**ASKED).model_dump()["apportion"]["decision_id"]
        logged(client)
        for name in ("decisions.sqlite-wal", "decisions.sqlite-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        path.write_bytes(b"no database at all" * 100)
        assert get(client, f"/decisions/{kept}")[0] == 200, "from memory"
        for status, found in (
            get(client, "/decisions/dec-old"),
            post(client, "/decisions/dec-old/feedback", {"score": 1}),
        ):
            assert status == 503
            assert found["error"]["code"] == "decision_log_unreadable"
            assert str(tmp_path) not in str(found)
        path.unlink()
        assert get(client, "/decisions/dec-old")[0] == 503
        assert not path.exists()


def test_a_priced_router_shows_what_answers_cost_and_save(stub: Stub, known: Routing, tmp_path: Path) -> None:
    scale = Scale(2000.0, 800.0, "rag+cot", Price(input=1.0, cached=0.5, output=4.0))
    priced = replace(known, router=replace(known.router, scale=scale))
    stub.logprobs, stub.cached = -2.0, 10
    with serving(stub, priced, decisions=tmp_path / "decisions.sqlite") as client:
        found = client.chat.completions.create(**ASKED).model_dump()
        chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ASKED))
        logged(client, 2)
        status, one = get(client, f"/decisions/{found['apportion']['decision_id']}")
        text, totals = get(client, "/metrics")[1], client.state.metrics.totals()  # type: ignore[attr-defined]
        frontier = get(client, "/dashboard/frontier")[1]
    split = found["usage"]["apportion"]
    price = sum(split[part]["prompt_tokens"] - 5 + 4 * split[part]["completion_tokens"] for part in ("draft", "answer"))
    assert split["price"] == price, "ten tokens of each prompt were cached and cost half"
    assert chunks[-1].model_dump()["usage"]["apportion"]["price"] == price
    assert (status, one["price"]) == (200, price)
    assert read_decisions(tmp_path / "decisions.sqlite")[0]["price"] == price
    sums = dict(line.rsplit(" ", 1) for line in text.splitlines() if "price" in line and not line.startswith("#"))
    spent = [float(sums[f'apportion_price_total{{stage="{stage}"}}']) for stage in ("draft", "answer")]
    assert sum(spent) == totals["price"] == 2 * price
    assert float(sums["apportion_saved_price_total"]) == totals["saved_price"] == 2 * (2000 - price)
    assert (totals["saved_tokens"], totals["priced"]) == (0, True)
    assert frontier["pipelines"]["rag+cot"]["price"] == 2000


def test_a_log_of_an_earlier_version_is_read_and_continued(stub: Stub, known: Routing, tmp_path: Path) -> None:
    path = tmp_path / "decisions.sqlite"
    with serving(stub, known, decisions=path) as client:
        client.chat.completions.create(**ASKED)
    with sqlite3.connect(path) as database:
        for name in ("price", "measured"):
            database.execute(f"ALTER TABLE decisions DROP COLUMN {name}")
        database.execute("PRAGMA user_version = 1")
    database.close()
    assert [(one["price"], one["measured"]) for one in read_decisions(path)] == [(None, True)]
    stub.usage = False
    with serving(stub, known, decisions=path) as client:
        client.chat.completions.create(**ASKED)
    assert [one["measured"] for one in read_decisions(path)] == [True, False]


@pytest.mark.parametrize("noted", [True, False])
def test_the_log_says_whether_tokens_were_told_also_one_that_did_not_note_it(
    stub: Stub, known: Routing, tmp_path: Path, *, noted: bool
) -> None:
    path = tmp_path / "decisions.sqlite"
    with serving(stub, known, decisions=path) as client:
        for stub.usage in (True, False):
            client.chat.completions.create(**ASKED)
            list(client.chat.completions.create(**ASKED, stream=True))
        logged(client, 4)
    if not noted:
        with sqlite3.connect(path) as database:
            database.execute("ALTER TABLE decisions DROP COLUMN measured")
            database.execute("PRAGMA user_version = 2")
        database.close()
    found = read_decisions(path)
    assert [one["measured"] for one in found] == [True, True, False, False]
    assert [bool(one["weaker"]) for one in found] == [False, False, True, True], "a draft that is streamed says it too"


def test_shadow_decides_and_passes_on(stub: Stub, known: Routing) -> None:
    stub.logprobs = -2.0
    with serving(stub, known, shadow=True) as client:
        raw = client.chat.completions.with_raw_response.create(**ASKED)
        assert raw.headers["x-apportion-route"] == "direct"
        assert stub.bodies[0]["messages"] == QUESTION
        deadline = time.monotonic() + 5
        while len(stub.bodies) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        found = logged(client)[0]
    assert (found["route"], found["shadow"], found["reason"]) == ("direct", "rag", "shadow")
    assert len(stub.bodies) == 2, "the answer as sent, and the draft of the decision"


def test_many_clients_at_once_get_their_own_answers(stub: Stub, known: Routing) -> None:
    async def ask_all(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def ask(number: int) -> str:
                messages = [{"role": "user", "content": f"Who founded Bern {number}?"}]
                if number % 2:
                    answer = await client.chat.completions.create(model="direct", messages=messages)  # type: ignore[call-overload]
                    return str(answer.choices[0].message.content)
                chunks = await client.chat.completions.create(model="direct", messages=messages, stream=True)  # type: ignore[call-overload]
                return "".join([one.choices[0].delta.content or "" async for one in chunks if one.choices])

            return list(await asyncio.gather(*(ask(number) for number in range(60))))

    with serving(stub, known, concurrency=8) as client:
        found = asyncio.run(ask_all(str(client.base_url)))
    assert found == [f"Reply to Who founded Bern {number}?" for number in range(60)]
