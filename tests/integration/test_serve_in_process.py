"""A model in this process behind the server: drafts are measured, and what it cannot do is the client's to know."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from apportion.route.llm import Completion, Request
from apportion.route.llm.protocol import Echo
from apportion.serve import create_app
from apportion.serve.in_process import InProcess
from tests.integration.serving import ASKED
from tests.integration.upstream_stub import served
from tests.routings import knowing_router, looking_router, routing


class Measured(Echo):
    """A model that says how sure it is."""

    def __init__(self, logprob: float) -> None:
        super().__init__("Answer: Bern")
        self.logprob, self.has_logprobs, self.batch_size = logprob, True, 4
        self.requests: list[Request] = []

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests += requests
        return [
            Completion(self.text, 5, 2, 1.0, token_logprobs=(self.logprob,) * 2 if one.logprobs else None, margin=2.5)
            for one in requests
        ]


@contextmanager
def _client(folder: Path, llm: Measured, *, looks: bool = False) -> Iterator[openai.OpenAI]:
    router = looking_router() if looks else knowing_router()
    app = create_app(routing(folder, router), InProcess(llm, together=4))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize(("logprob", "calls"), [(-0.01, 1), (-2.0, 2)])
def test_probes_are_measured(tmp_path: Path, looks: bool, logprob: float, calls: int) -> None:
    llm = Measured(logprob)
    with _client(tmp_path, llm, looks=looks) as client:
        found = client.chat.completions.create(**ASKED).model_dump()["apportion"]
    assert found["draft_reused"] == (calls == 1)
    assert [one.logprobs for one in llm.requests] == [True, False][:calls]
    assert found["weaker"] == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        {"logprobs": True, "top_logprobs": 2},
        {"guided_choice": ["a", "b"]},
        {"temperature": 1, "top_p": 0.5},
        {"top_k": 3},
        {"seed": "abc"},
        {"chat_template_kwargs": 5},
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path: Path, extra: dict[str, Any], stream: bool) -> None:
    with _client(tmp_path, Measured(-2.0)) as client, pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ASKED, stream=stream, extra_body=extra)
    assert error.value.param in extra
