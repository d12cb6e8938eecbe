"""The prompts of the four pipelines: a value read from TOML, checked whole, identified by its digest.

Each strategy has one prompt, and may have others for questions of some kind (see `kinds`); the schema is at the
top of `prompts.toml`, which `apportion prompts` prints.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from apportion.core.artifact import digest_of
from apportion.core.errors import ArtifactError, InputError
from apportion.core.lines import Offenders
from apportion.route.ask.kinds import KINDS, Kind, kind_of
from apportion.route.ask.strategy import STRATEGIES, USES_RAG

DEFAULT_PATH = Path(__file__).with_name("prompts.toml")
MAX_FILE_BYTES = 1 << 20
MAX_NEW_TOKENS = 131_072
SCHEMA = "`apportion prompts` prints the shipped file, with its schema at the top"
_KEYS: Mapping[str, type] = {
    "system": str,
    "user": str,
    "thinking": bool,
    "max_tokens": int,
    "answer_pattern": str,
    "stop": list,
    "examples": list,
    "again": str,
}
_NEWER = ("stop", "examples", "kinds", "kind")  # no part of a digest where they say nothing
AGAIN: Mapping[Kind, str] = {  # where a prompt says nothing; no part of its digest, so another wording is a new `again`
    "short": "Now write only the line 'Answer: ' with your answer, in as few words as possible.",
    "yes_no": "Now write only the line 'Answer: yes' or 'Answer: no'.",
    "number": "Now write only the line 'Answer: ' with one number.",
}


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example: a turn that the user's template is filled for, and the answer to it.

    Attributes:
        passages: the text of the passages' block, for rag and rag+cot.
    """

    question: str
    answer: str
    passages: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """How one strategy asks and reads; see `prompts.toml` for the placeholders.

    Attributes:
        stop: texts that end the completion.
        again: what asks for the answer alone where reasoning ended without one; None is the default of its kind,
            an empty text never asks.
        kinds: the prompts for questions of some kind, in place of this one. kind: that this one is for.
    """

    user: str
    system: str = ""
    thinking: bool | None = None
    max_tokens: int = 256
    answer_pattern: str = "(?s)(.*)"
    stop: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    kinds: Mapping[str, "Prompt"] = field(default_factory=dict)
    kind: Kind = "short"
    again: str | None = None

    @property
    def asks_again(self) -> str:
        """The text that asks for the answer alone; empty where none does."""
        return AGAIN[self.kind] if self.again is None else self.again


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
        problems = Offenders("prompts", SCHEMA)
        if "{text}" not in self.passage:
            problems.add("passage.template", "has no {text}")
        for strategy, uses_rag in zip(STRATEGIES, USES_RAG, strict=True):
            prompt = self.of(strategy)
            _check(strategy, prompt, uses_rag, problems)
            for kind, other in prompt.kinds.items():
                _check(f"{strategy}.{kind}", other, uses_rag, problems)
        problems.raise_if_any()

    def of(self, strategy: str, question: str | None = None) -> Prompt:
        """The prompt of a strategy: for a question, that of its kind where there is one.

        >>> load_prompts().of("cot", "Is Bern the capital of Switzerland?").kind
        'yes_no'
        """
        found: Prompt = getattr(self, strategy.replace("+", "_"))
        return found if question is None else found.kinds.get(kind_of(question), found)

    @property
    def digest(self) -> str:
        """16 hex digits; another wording, limit, pattern or example is another digest."""
        return digest_of(_without_defaults(asdict(self)))[:16]


def _without_defaults(value: Any) -> Any:
    """Without keys that prompts did not have once and that say nothing here: their digests stay."""
    if not isinstance(value, dict):
        return value
    return {key: _without_defaults(item) for key, item in value.items() if _says(key, item)}


def _says(key: str, item: Any) -> bool:
    if key == "again":
        return item is not None
    return key not in _NEWER or (bool(item) and item != "short")


def load_prompts(path: Path | None = None) -> Prompts:
    """Prompts from a TOML file, the shipped ones without a path.

    Args:
        path: a TOML file of the schema that `apportion prompts` prints.

    Raises:
        InputError: not TOML, unknown or missing sections and keys, wrong types, bad patterns; all at once.
        ArtifactError: no such file.
    Cost: one small file is read.

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
    problems = Offenders(f"--prompts {path}", SCHEMA)
    for name in sections.keys() - {"passage", *STRATEGIES}:
        problems.add(f"[{name}]", f"is no section; expected passage, {', '.join(STRATEGIES)}")
    passage = _section(sections.get("passage"), "passage", {"template": str}, problems)
    prompts = {name.replace("+", "_"): _prompt(sections.get(name), name, problems) for name in STRATEGIES}
    problems.raise_if_any()
    return Prompts(passage["template"], **prompts)


def _prompt(section: object, name: str, problems: Offenders) -> Prompt:
    """A strategy's prompt with those for kinds of questions, which take from it what they do not say."""
    if not isinstance(section, dict):
        problems.add(f"[{name}]", "is missing")
        return Prompt("")
    own = {key: value for key, value in section.items() if key not in KINDS}
    base = _one_prompt(own, name, "short", problems)
    kinds: dict[str, Prompt] = {}
    for kind in KINDS:
        changed = section.get(kind, {})
        if not isinstance(changed, dict):
            problems.add(f"[{name}] {kind}", f"is {changed!r}, expected a section [{name}.{kind}]")
        elif kind in section:
            kinds[kind] = _one_prompt({**own, **changed}, f"{name}.{kind}", kind, problems)
    return replace(base, kinds=kinds)


def _one_prompt(values: dict[str, Any], place: str, kind: Kind, problems: Offenders) -> Prompt:
    before = problems.count
    section = _section(values, place, _KEYS, problems)
    stop, examples = section.get("stop", []), section.get("examples", [])
    if problems.count == before and any(not isinstance(text, str) or not text for text in stop):
        problems.add(f"[{place}] stop", "is no list of texts")
    made = [_example(one, f"[{place}] examples, number {number}", problems) for number, one in enumerate(examples, 1)]
    if problems.count > before:
        return Prompt("")
    return Prompt(**{**section, "stop": tuple(stop), "examples": tuple(made), "kind": kind})


def _example(value: object, place: str, problems: Offenders) -> Example:
    texts = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if texts and {"question", "answer"} <= value.keys() <= {"question", "answer", "passages"}:  # type: ignore[attr-defined]
        return Example(**value)  # type: ignore[arg-type]
    problems.add(place, "is no table of the texts question, answer and perhaps passages")
    return Example("", "")


def _section(section: object, name: str, keys: Mapping[str, type], problems: Offenders) -> dict[str, Any]:
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
