"""The prompts of the four pipelines: a value read from TOML, checked whole, identified by its digest."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apportion.core.artifact import digest_of
from apportion.core.errors import ArtifactError, InputError
from apportion.core.lines import Offenders
from apportion.route.ask.strategy import STRATEGIES, USES_RAG

DEFAULT_PATH = Path(__file__).with_name("prompts.toml")
MAX_FILE_BYTES = 1 << 20
MAX_NEW_TOKENS = 131_072
_KEYS: Mapping[str, type] = {
    "system": str,
    "user": str,
    "thinking": bool,
    "max_tokens": int,
    "answer_pattern": str,
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """How one strategy asks and reads; see `prompts.toml` for the placeholders."""

    user: str
    system: str = ""
    thinking: bool | None = None
    max_tokens: int = 256
    answer_pattern: str = "(?s)(.*)"


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of the four strategies and of a passage; may be made in Python instead of TOML.

    Raises:
        InputError: every problem found, in one error.
    """

    passage: str
    direct: Prompt
    rag: Prompt
    cot: Prompt
    rag_cot: Prompt

    def __post_init__(self) -> None:
        problems = Offenders("prompts", "see apportion/route/prompts.toml for the schema")
        if "{text}" not in self.passage:
            problems.add("passage.template", "has no {text}")
        for strategy, uses_rag in zip(STRATEGIES, USES_RAG, strict=True):
            _check(strategy, self.of(strategy), uses_rag, problems)
        problems.raise_if_any()

    def of(self, strategy: str) -> Prompt:
        """The prompt of a strategy by name."""
        found: Prompt = getattr(self, strategy.replace("+", "_"))
        return found

    @property
    def digest(self) -> str:
        """16 hex digits; another wording, limit or pattern is another digest."""
        return digest_of(self)[:16]


def load_prompts(path: Path | None = None) -> Prompts:
    """Prompts from a TOML file, the shipped ones without a path.

    Raises:
        InputError: not TOML, unknown or missing sections and keys, wrong types, bad patterns; all at once.
        ArtifactError: no such file.

    >>> load_prompts().direct.max_tokens
    32
    """
    path = path or DEFAULT_PATH
    try:
        with path.open("rb") as file:
            sections = tomllib.loads(file.read(MAX_FILE_BYTES).decode())
    except OSError as error:
        raise ArtifactError(f"--prompts {path}: cannot be read: {error.strerror}", "name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {path}: is not TOML: {error}", "correct it there") from error
    problems = Offenders(f"--prompts {path}", "see apportion/route/prompts.toml for the schema")
    for name in sections.keys() - {"passage", *STRATEGIES}:
        problems.add(f"[{name}]", f"is no section; expected passage, {', '.join(STRATEGIES)}")
    passage = _section(sections, "passage", {"template": str}, problems)
    prompts = {name.replace("+", "_"): _section(sections, name, _KEYS, problems) for name in STRATEGIES}
    problems.raise_if_any()
    return Prompts(passage["template"], **{name: Prompt(**values) for name, values in prompts.items()})


def _section(sections: Mapping[str, Any], name: str, keys: Mapping[str, type], problems: Offenders) -> dict[str, Any]:
    section = sections.get(name)
    if not isinstance(section, dict):
        problems.add(f"[{name}]", "is missing")
        return {}
    for key, value in section.items():
        if key not in keys:
            problems.add(f"[{name}] {key}", f"is no key; expected {', '.join(keys)}")
        elif type(value) is not keys[key]:
            problems.add(f"[{name}] {key}", f"is {value!r}, expected {keys[key].__name__}")
    for key in {"user", "template"} & keys.keys():
        if key not in section:
            problems.add(f"[{name}] {key}", "is missing")
    return section


def _check(strategy: str, prompt: Prompt, uses_rag: bool, problems: Offenders) -> None:
    for placeholder in ("{question}", *(["{passages}"] if uses_rag else [])):
        if prompt.user.count(placeholder) != 1:
            problems.add(
                f"[{strategy}] user",
                f"has {placeholder} {prompt.user.count(placeholder)} times, expected once",
            )
    if not uses_rag and "{passages}" in prompt.user:
        problems.add(f"[{strategy}] user", "has {passages}, which only rag and rag+cot may use")
    if not 1 <= prompt.max_tokens <= MAX_NEW_TOKENS:
        problems.add(f"[{strategy}] max_tokens", f"is {prompt.max_tokens}, expected 1 to {MAX_NEW_TOKENS}")
    try:
        if not re.compile(prompt.answer_pattern).groups:
            problems.add(f"[{strategy}] answer_pattern", "has no group 1")
    except re.error as error:
        problems.add(f"[{strategy}] answer_pattern", f"is no regular expression: {error}")
