"""Prompts and dialogues: the TOML of prompts, and dialogues as the model's chat template writes them.

The chat template is also shipped with the tokenizer; a test holds the two together. Imports no model.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from apportion.demo.documents import Passage

PROMPTS_PATH: Final = Path(__file__).parent / "prompts.toml"
PIPELINES: Final = ("direct", "rag", "cot", "rag+cot")
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SYSTEM: Final = "<|system|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"
THINK: Final = "<think>"
END_THINK: Final = "</think>"
SPECIAL_TOKENS: Final = (PAD, END, SYSTEM, USER, ASSISTANT)
THINKING_TOKENS: Final = (THINK, END_THINK)
CHAT_TEMPLATE: Final = (
    "{%- for message in messages %}"
    "{{- '<|' + message.role + '|>' + message.content }}"
    "{%- if message.role == 'assistant' %}{{- '<|end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|assistant|>' }}"
    "{%- if not enable_thinking is defined or not enable_thinking %}{{- '<think></think>' }}{%- endif %}"
    "{%- endif %}"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """How one pipeline asks."""

    user: str
    thinking: bool
    max_tokens: int
    answer_pattern: str
    system: str = ""


@cache
def prompts() -> Mapping[str, Prompt]:
    """The four prompts by pipeline."""
    table = _table()
    return {name: Prompt(**table[name]) for name in PIPELINES}


def prompt_text(pipeline: str, question: str, passages: Iterable[Passage] = ()) -> str:
    """What the model is given: the rendered prompt of a pipeline, up to where the answer begins.

    >>> prompt_text("direct", "Where?")
    '<|user|>Where?<|assistant|><think></think>'
    """
    prompt = prompts()[pipeline]
    shown = "".join(_passage_text(number, passage) for number, passage in enumerate(passages, start=1))
    system = SYSTEM + prompt.system if prompt.system else ""
    user = prompt.user.format(question=question, passages=shown)
    return f"{system}{USER}{user}{ASSISTANT}{'' if prompt.thinking else THINK + END_THINK}"


def completion_text(pipeline: str, answer: str, rationale: str) -> str:
    """What the model is to answer, its end included.

    The answer begins with a space, so that its tokens are those it has within a text: a model that learnt
    a name from pages can then say it at once.

    >>> completion_text("cot", "3", "1 + 2 = 3.")
    '<think>1 + 2 = 3.</think> 3<|end|>'
    """
    if not prompts()[pipeline].thinking:
        return f" {answer}{END}"
    return f"{THINK}{rationale}{END_THINK} {answer}{END}"


def page_text(passage: Passage) -> str:
    """A page on its own, as the model was trained on pages."""
    return f"{passage.title}: {passage.text}{END}"


def _passage_text(number: int, passage: Passage) -> str:
    template: str = _table()["passage"]["template"]
    return template.format(number=number, title=passage.title, text=passage.text)


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(PROMPTS_PATH.read_text(encoding="utf-8"))
