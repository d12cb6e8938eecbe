"""A causal LM in this process: chat template, context, batches. Imports torch only when a model is opened."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from apportion.core.device import Placement, place
from apportion.core.errors import InputError
from apportion.route.llm.cut import fit
from apportion.route.llm.engine import Engine, Generation
from apportion.route.llm.generate import Row
from apportion.route.llm.protocol import THINK_END, THINK_START, Completion, Request, before_stop, split_thinking

DEFAULT_CONTEXT = 2048  # for a configuration that does not say
ROUNDS = 4  # batches in one call: as a sequence ends the next begins, so a longer queue keeps the batch full
UNFINISHED = "\ufffd"  # what a part of a character is decoded to
STOP_TOKENS = 24  # the last tokens, in which a stop sequence is sought


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request as token ids, and what was cut from it; all of it where it is not to be decoded."""

    row: Row
    opened: bool  # the prompt ends inside a thinking block
    cut_tokens: int


class LocalLLM:
    """A language model in this process; see the protocol `LLM`.

    Args:
        model: a Hugging Face causal LM in evaluation mode.
        tokenizer: its tokenizer; without a chat template prompts are plain text.
        identity: what is saved with profiles as the model.
        batch_size: rows decoded together. Latency then is that of a batch: 1 measures single requests.

    Attributes:
        batch_size: requests that one call should carry: more than are decoded together, unless that is one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        identity: str,
        name: str = "local",
        batch_size: int = 16,
        placement: Placement | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"--batch {batch_size}: expected at least 1")
        self.model, self.name = identity, name
        self.has_logprobs, self.logprobs_reason = True, "the model runs in this process"
        self.concurrency = 1
        self.batch_size = batch_size if batch_size == 1 else ROUNDS * batch_size
        self.placement = placement
        self.context = int(getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT)
        self.has_chat_template = bool(tokenizer.chat_template)
        self._model, self._tokenizer = model, tokenizer
        self._end_ids = _end_ids(model, tokenizer)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._engine = Engine(model, end_ids=self._end_ids, pad_id=pad_id, slots=batch_size)
        self._pieces: dict[int, str] = {}  # of single tokens, as they were met
        self._special = _special_ids(tokenizer)
        self._think_start, self._think_end = (_token_id(tokenizer, mark) for mark in (THINK_START, THINK_END))
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        model: str,
        *,
        batch_size: int = 16,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ) -> "LocalLLM":
        """Load a model folder (also one that `quantize` wrote), a GGUF file, or a model by its name on the Hub.

        Args:
            trust_remote_code: run code that comes with the checkpoint.

        Raises:
            InputError: no such model, no causal LM, or weights that are missing or not safetensors.
        """
        from apportion.models.load import load_model

        placement = place(device, dtype)
        folder = Path(model).expanduser()
        try:
            loaded = load_model(
                str(folder) if folder.exists() else model, placement, trust_remote_code=trust_remote_code
            )
        except InputError as error:
            problem = error.problem.removeprefix("MODEL ")
            raise InputError(f"--llm {problem}", f"{error.remedy}, or a server as http://host:port/v1") from error
        commit = getattr(loaded.model.config, "_commit_hash", None)
        return cls(
            loaded.model,
            loaded.tokenizer,
            identity=loaded.identity if folder.exists() else f"hub:{model}@{commit}",
            name=folder.name if folder.exists() else model,
            batch_size=batch_size,
            placement=placement,
        )

    @property
    def generation(self) -> Generation:
        """How sequences are decoded, and what had to be given up."""
        return self._engine.how

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in order; sequences of equal beginning and similar length are decoded together.

        Raises:
            InputError: max_tokens leaves no room in the context for a prompt.
            ServiceError: one sequence alone does not fit into memory.
        """
        prepared = [self._prepare(request) for request in requests]
        with self._lock:
            self._engine.run([one.row for one in prepared])
        return [self._completion(request, one) for request, one in zip(requests, prepared, strict=True)]

    def close(self) -> None:
        """Nothing is held but memory."""

    def render(self, request: Request) -> list[int]:
        """Prompt token ids: the chat template's, or turns as plain text without one."""
        return self._ids(self._text(request))

    def _ids(self, text: str) -> list[int]:
        options = {} if not self.has_chat_template else {"add_special_tokens": False}
        return list(self._tokenizer(text, verbose=False, **options)["input_ids"])

    def _text(self, request: Request) -> str:
        if not self.has_chat_template:
            return _as_text(request)
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages += [{"role": role, "content": text} for role, text in request.turns]
        switch = {} if request.thinking is None else {"enable_thinking": request.thinking}
        return self._apply_template(messages, switch)

    def _apply_template(self, messages: list[dict[str, str]], switch: dict[str, bool]) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switch)
        except TemplateError:  # a template that knows no system message (Gemma)
            if messages[0]["role"] != "system":
                raise
            joined = {"role": "user", "content": "\n\n".join(message["content"] for message in messages[:2])}
            return self._apply_template([joined, *messages[2:]], switch)
        return str(text)

    def _prepare(self, request: Request) -> _Prepared:
        room = self.context - request.max_tokens
        if request.max_tokens < 1 or room < 1:
            raise InputError(
                f"max_tokens {request.max_tokens}: expected 1 to {self.context - 1}, "
                f"since the context is {self.context} tokens",
                "lower max_tokens in the prompts file",
            )
        text = self._text(request)
        if request.whole and len(text) > room * self._longest_token:
            return _refused(len(text) // self._longest_token)
        whole = kept = self._ids(text)
        if len(whole) > room:
            if request.whole:
                return _refused(len(whole))
            text = self._text(fit(request, lambda shorter: len(self.render(shorter)), room))
            kept = self._ids(text)
        opened = text.rstrip().endswith(THINK_START)
        ends = self._ends(request.stop, opened) if request.stop else None
        row = Row(kept, request.max_tokens, request.temperature, request.seed, ends)
        return _Prepared(row, opened, len(whole) - len(kept))

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token: a text of so many times the context is too long, and need not be read.

        Of a tokenizer that drops blanks, what is nearly all blanks is refused though it would have been short.
        """
        return max(map(len, self._tokenizer.get_vocab()))

    def _ends(self, stop: tuple[str, ...], opened: bool) -> Callable[[Sequence[int]], bool]:
        """Whether the last tokens hold a stop sequence, once thinking has ended."""

        last = {text[-1] for text in stop if text}
        blank = any(one.isspace() for one in last)  # decoded alone, a token may lose the blank that it begins with

        def ends(tokens: Sequence[int]) -> bool:
            if not (blank or self._may_end(tokens[-1], last)) or self._is_thinking(tokens, opened):
                return False
            return any(text in self._tokenizer.decode(tokens[-STOP_TOKENS:]) for text in stop)

        return ends

    def _may_end(self, token: int, last: set[str]) -> bool:
        """Whether a token's text can be the end of a stop sequence; spared is the decoding of all others."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._tokenizer.decode([token])
        return not piece.strip() or UNFINISHED in piece or any(character in piece for character in last)

    def _completion(self, request: Request, prepared: _Prepared) -> Completion:
        row = prepared.row
        start = self._visible_from(row.tokens, prepared.opened)
        visible = [
            number
            for number, token in enumerate(row.tokens[start:], start)
            if token not in self._special and token not in self._end_ids
        ]
        text = self._tokenizer.decode(row.tokens[start:], skip_special_tokens=True)
        thought = self._tokenizer.decode(row.tokens[:start], skip_special_tokens=True)
        opened = prepared.opened and not start
        more_thought, text = split_thinking(text, opened=opened)  # where the marks are no tokens of their own
        thought = thought.replace(THINK_START, "").replace(THINK_END, "").strip()
        return Completion(
            text=before_stop(text, request.stop),
            prompt_tokens=len(row.prompt),
            completion_tokens=len(row.tokens),
            latency_ms=row.latency_ms,
            token_logprobs=tuple(row.logprobs[number] for number in visible) if request.logprobs else None,
            finish="stop" if row.stopped else "length",
            thinking_text=thought or more_thought,
            cut_prompt_tokens=prepared.cut_tokens,
            cached_tokens=row.shared_tokens,
            margin=row.margins[visible[0]] if request.logprobs and visible else None,
        )

    def _is_thinking(self, tokens: Sequence[int], opened: bool) -> bool:
        """Whether so far all is thinking."""
        if self._think_end in tokens:
            return False
        return opened or (self._think_start is not None and self._think_start in tokens)

    def _visible_from(self, tokens: Sequence[int], opened: bool) -> int:
        """Number of the first visible token; thinking that never ended hides them all."""
        if self._think_end is not None and self._think_end in tokens:
            return len(tokens) - list(reversed(tokens)).index(self._think_end)
        return len(tokens) if self._think_end is not None and self._is_thinking(tokens, opened) else 0


def _refused(tokens: int) -> _Prepared:
    """A prompt of so many tokens that is not decoded: its row is done before it begins."""
    return _Prepared(Row([], 0), False, tokens)


def _as_text(request: Request) -> str:
    """Turns as plain text: an answer in the line after its question, a blank line before the next."""
    text = f"{request.system}\n\n" if request.system else ""
    for role, said in request.turns:
        text += f"{said}\n" if role == "user" else f"{said}\n\n"
    return text


def _token_id(tokenizer: Any, text: str) -> int | None:
    """The id of a mark that is one token; None where it is not."""
    found = tokenizer.convert_tokens_to_ids(text)
    return None if found is None or found == tokenizer.unk_token_id else int(found)


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset([*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)])


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    listed = getattr(model.generation_config, "eos_token_id", None)
    every = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id]
    return frozenset(int(token) for token in every if token is not None)
