"""A server that others wrote as the upstream: llama.cpp, on a real socket, with a tiny model."""

from collections.abc import Iterator

import openai
import pytest

from apportion.serve import Address, Routing, Upstream, create_app
from tests.integration.tiny_gguf import write_gguf
from tests.integration.tiny_model import make_tiny_model
from tests.integration.upstream_stub import served

HALF = "\ufffd"  # what llama.cpp sends of a character that the last token cut, in plain answers only
QUESTION = [{"role": "user", "content": "What is the capital?"}]


@pytest.fixture(scope="module")
def client(known: Routing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    import xllamacpp

    folder = make_tiny_model(tmp_path_factory.mktemp("model"), context=2048)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(write_gguf(folder, folder / "tiny.gguf"))
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.n_ctx, settings.n_parallel, settings.warmup = 4096, 2, False
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)
    app = create_app(known, Upstream(Address(f"{server.listening_address}/v1")))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found
    del server


@pytest.mark.slow
@pytest.mark.parametrize("model", ["auto", "direct", "rag", "cot"])
def test_plain_and_streamed(client: openai.OpenAI, model: str) -> None:
    plain = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=6)
    found = plain.model_dump()
    assert found["apportion"]["route"] in ("direct", "rag", "cot")
    assert not found["apportion"]["weaker"]
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + found["usage"]["completion_tokens"]
    options = {"include_usage": True}
    chunks = [
        chunk.model_dump()
        for chunk in client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=6, stream=True, stream_options=options
        )
    ]
    text = "".join(one["choices"][0]["delta"]["content"] or "" for one in chunks if one["choices"])
    whole = str(plain.choices[0].message.content)
    assert text.strip().rstrip(HALF) == whole.strip().rstrip(HALF), "greedy, as it was profiled"
    assert chunks[0]["apportion"]["route"] == found["apportion"]["route"]
    assert chunks[-1]["usage"]["total_tokens"] == found["usage"]["total_tokens"]


@pytest.mark.slow
def test_drafts_are_measured(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="auto", messages=QUESTION, max_tokens=6).model_dump()
    assert found["apportion"]["tier"] == "full", "llama.cpp returned log-probabilities"


@pytest.mark.slow
def test_a_context_that_is_too_small_is_answered_with_less(client: openai.OpenAI) -> None:
    turns = [{"role": "user", "content": "one two " * 1600}, {"role": "assistant", "content": "three"}, *QUESTION]
    found = client.chat.completions.create(model="rag", messages=turns, max_tokens=6).model_dump()
    assert "the oldest" in found["apportion"]["weaker"][-1]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="rag", messages=[{"role": "user", "content": "one two " * 3000}])
    assert error.value.code == "context_length_exceeded"
