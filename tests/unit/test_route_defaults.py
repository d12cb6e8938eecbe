"""What Python takes where nothing is said is what the commands take."""

import dataclasses
import inspect
from typing import Any

import pytest

import apportion
from apportion.cli import route as commands
from apportion.route.ask.setup import Setup
from apportion.route.index.corpus import read_corpus
from apportion.route.llm import LLMSettings
from apportion.route.profile.run import run_profile


def defaults(of: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(of):
        return {one.name: one.default for one in dataclasses.fields(of)}
    return {name: one.default for name, one in inspect.signature(of).parameters.items()}


@pytest.mark.parametrize(
    ("python", "command", "names"),
    [
        (LLMSettings, commands.profile, {"concurrency": "concurrency", "timeout_s": "timeout", "retries": "retries"}),
        (LLMSettings, commands.profile, {"batch_size": "batch", "device": "device", "dtype": "dtype"}),
        (LLMSettings, commands.profile, {"model": "model", "trust_remote_code": "trust_remote_code"}),
        (LLMSettings, commands.ask, {"timeout_s": "timeout", "retries": "retries", "device": "device"}),
        (Setup, commands.profile, {"k": "k"}),
        (run_profile, commands.profile, {"unloaded": "unloaded", "resume": "resume"}),
        (read_corpus, commands.index, {"max_chars": "max_chars"}),
    ],
)
def test_defaults_are_the_commands(python: Any, command: Any, names: dict[str, str]) -> None:
    ours, theirs = defaults(python), defaults(command)
    assert {name: ours[name] for name in names} == {name: theirs[other] for name, other in names.items()}


def test_the_public_names_of_the_routing_half_are_there() -> None:
    names = ("LLMSettings", "Setup", "build_index", "connect", "load_prompts", "read_corpus", "read_profile")
    for name in (*names, "read_questions", "run_profile"):
        assert getattr(apportion, name).__doc__
