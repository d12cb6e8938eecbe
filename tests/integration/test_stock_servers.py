"""Servers that others wrote, on a real socket: llama.cpp (with log-probabilities), transformers (without)."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from apportion.route.ask.features import FEATURES
from apportion.route.ask.prompts import Prompts, load_prompts
from apportion.route.ask.setup import Setup
from apportion.route.index.build import build_index
from apportion.route.index.corpus import Passage
from apportion.route.llm.local import LocalLLM
from apportion.route.llm.openai import OpenAILLM
from apportion.route.llm.protocol import Request
from apportion.route.profile.file import read_profile
from apportion.route.profile.questions import Question
from apportion.route.profile.run import run_profile
from tests.integration.tiny_gguf import write_gguf
from tests.integration.tiny_model import make_tiny_model

ASKED = [
    Request(text, max_tokens=6, thinking=False, logprobs=True)
    for text in ("What is the capital?", "one plus two", "Tokyo and Bern")
]
CORPUS = [Passage("1", "Bern", "Bern is the capital"), Passage("2", "Tokyo", "Tokyo is the capital")]
QUESTIONS = [Question("a", "d", "What is the capital?", ("Bern",)), Question("b", "d", "one plus", ("2",))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def local(folder: Path) -> LocalLLM:
    return LocalLLM.open(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def llama_cpp(folder: Path) -> Iterator[OpenAILLM]:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(write_gguf(folder, folder / "tiny.gguf"))
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.n_ctx, settings.n_parallel, settings.warmup = 512, 2, False
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)
    llm = OpenAILLM(f"{server.listening_address}/v1", concurrency=2, retries=1)
    yield llm
    llm.close()
    del server


@pytest.fixture(scope="module")
def transformers_serve(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAILLM]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home)}
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        wait_for_health(f"http://127.0.0.1:{port}/health", process, log)
        llm = OpenAILLM(f"http://127.0.0.1:{port}/v1", str(folder), concurrency=1, retries=1)
        yield llm
        llm.close()
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_health(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)


def short_prompts() -> Prompts:
    shipped = load_prompts()
    names = ("direct", "rag", "cot", "rag_cot")
    return replace(shipped, **{name: replace(getattr(shipped, name), max_tokens=6) for name in names})


def test_llama_cpp_gives_the_tokens_and_logprobs_of_the_same_weights(llama_cpp: OpenAILLM, local: LocalLLM) -> None:
    """llama.cpp leaves out log-probabilities of tokens that are no whole character, and keeps keys in half
    precision, hence the tolerance."""
    assert llama_cpp.has_logprobs
    for theirs, ours in zip(llama_cpp.complete(ASKED), local.complete(ASKED), strict=True):
        assert theirs.prompt_tokens == ours.prompt_tokens
        assert theirs.completion_tokens == ours.completion_tokens == 6
        assert theirs.finish == "length"
        assert theirs.token_logprobs
        assert ours.token_logprobs
        for value in theirs.token_logprobs:
            assert min(abs(value - other) for other in ours.token_logprobs) < 0.01


def test_llama_cpp_says_that_a_prompt_is_too_long_and_gets_a_shorter_one(llama_cpp: OpenAILLM) -> None:
    found = llama_cpp.complete([Request("capital " * 600, max_tokens=4)])[0]
    assert found.cut_prompt_tokens > 0
    assert found.attempts > 1


def test_a_profile_over_llama_cpp_has_every_feature(llama_cpp: OpenAILLM, tmp_path: Path) -> None:
    setup = Setup(llama_cpp, build_index(CORPUS, tmp_path / "index"), short_prompts(), 2)
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet")
    assert (report.rows, report.failed, report.has_logprobs) == (8, 0, True)
    assert {name for name, one in FEATURES.items() if one.group == "draft"} <= set(
        read_profile(tmp_path / "p.parquet").feature_names
    )


def test_transformers_serve_answers_without_logprobs(
    transformers_serve: OpenAILLM, local: LocalLLM, tmp_path: Path
) -> None:
    assert not transformers_serve.has_logprobs
    assert transformers_serve.logprobs_reason == "the server answers without them"
    for theirs, ours in zip(transformers_serve.complete(ASKED), local.complete(ASKED), strict=True):
        assert (theirs.text, theirs.prompt_tokens, theirs.completion_tokens) == (
            ours.text,
            ours.prompt_tokens,
            ours.completion_tokens,
        )
        assert theirs.token_logprobs is None
    setup = Setup(transformers_serve, build_index(CORPUS, tmp_path / "index"), short_prompts(), 2)
    report = run_profile(QUESTIONS, setup, tmp_path / "p.parquet")
    assert (report.rows, report.failed, report.has_logprobs) == (8, 0, False)
    profile = read_profile(tmp_path / "p.parquet")
    assert not any(name.startswith(("draft_nll", "draft_margin")) for name in profile.feature_names)
    assert profile.complete.all()
