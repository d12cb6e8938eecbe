"""A causal LM in this process: chat template, context, batches. Imports torch only when a model is opened."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apportion.core.device import Placement, place
from apportion.core.errors import InputError, ModelStructureError
from apportion.models.identity import model_identity
from apportion.route.llm.cut import fit
from apportion.route.llm.generate import Row, generate
from apportion.route.llm.protocol import THINK_END, THINK_START, Completion, Request, split_thinking

DEFAULT_CONTEXT = 2048  # for a configuration that does not say


class LocalLLM:
    """A language model in this process; see the protocol `LLM`.

    Args:
        model: a Hugging Face causal LM in evaluation mode.
        tokenizer: its tokenizer; without a chat template prompts are plain text.
        identity: what is saved with profiles as the model.
        batch_size: rows decoded together. Latency then is that of a batch: 1 measures single requests.
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
        self.concurrency, self.batch_size = 1, batch_size
        self.placement = placement
        self.context = int(getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT)
        self.has_chat_template = bool(tokenizer.chat_template)
        self.has_thinking_switch = "enable_thinking" in str(tokenizer.chat_template)
        self._model, self._tokenizer = model, tokenizer
        self._end_ids = _end_ids(model, tokenizer)
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._special = _special_ids(tokenizer)
        self._think_start, self._think_end = (_token_id(tokenizer, mark) for mark in (THINK_START, THINK_END))
        self._lock = threading.Lock()

    @classmethod
    def open(cls, model: str, *, batch_size: int = 16, device: str = "auto", dtype: str = "auto") -> "LocalLLM":
        """Load a model folder, or a model by its name on the Hub.

        Raises:
            InputError: no such model. ModelStructureError: it is no causal LM.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        placement = place(device, dtype)
        folder = Path(model).expanduser()
        source = str(folder) if folder.is_dir() else model
        identity = model_identity(folder) if folder.is_dir() else ""
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            loaded = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, placement.dtype))
        except OSError as error:
            raise InputError(
                f"--llm {model}: no model there: {str(error).splitlines()[0]}",
                "name a model folder, a model on the Hub, or a server as http://host:port/v1",
            ) from error
        except (ValueError, KeyError) as error:
            raise ModelStructureError(f"--llm {model}: cannot be loaded as a causal LM: {error}") from error
        commit = getattr(loaded.config, "_commit_hash", None)
        loaded = loaded.to(placement.device).eval()
        return cls(
            loaded,
            tokenizer,
            identity=identity or f"hub:{model}@{commit}",
            name=folder.name if identity else model,
            batch_size=batch_size,
            placement=placement,
        )

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in order; decoded in batches of similar prompt length.

        Raises:
            InputError: max_tokens leaves no room in the context for a prompt.
        """
        prepared = [self._prepare(request) for request in requests]
        order = sorted(range(len(prepared)), key=lambda number: len(prepared[number][0].prompt))
        with self._lock:
            for at in range(0, len(order), self.batch_size):
                rows = [prepared[number][0] for number in order[at : at + self.batch_size]]
                generate(self._model, rows, end_ids=self._end_ids, pad_id=self._pad_id)
        return [self._completion(request, row, cut) for request, (row, cut) in zip(requests, prepared, strict=True)]

    def close(self) -> None:
        """Nothing is held but memory."""

    def render(self, request: Request) -> list[int]:
        """Prompt token ids: the chat template's, or system, blank line, user, newline without one."""
        messages = [{"role": "user", "content": request.user}]
        if not self.has_chat_template:
            text = "\n\n".join(part for part in (request.system, request.user) if part) + "\n"
            return list(self._tokenizer(text, verbose=False)["input_ids"])
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        switch = {} if request.thinking is None else {"enable_thinking": request.thinking}
        text = self._apply_template(messages, switch)
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _apply_template(self, messages: list[dict[str, str]], switch: dict[str, bool]) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switch)
        except TemplateError:  # a template that knows no system message (Gemma)
            if len(messages) == 1:
                raise
            joined = "\n\n".join(message["content"] for message in messages)
            return self._apply_template([{"role": "user", "content": joined}], switch)
        return str(text)

    def _prepare(self, request: Request) -> tuple[Row, int]:
        room = self.context - request.max_tokens
        if request.max_tokens < 1 or room < 1:
            raise InputError(
                f"max_tokens {request.max_tokens}: expected 1 to {self.context - 1}, "
                f"since the context is {self.context} tokens",
                "lower max_tokens in the prompts file",
            )
        whole = self.render(request)
        if len(whole) <= room:
            kept = whole
        else:
            kept = self.render(fit(request, lambda shorter: len(self.render(shorter)), room))
        row = Row(kept, request.max_tokens, request.temperature, request.seed)
        return row, len(whole) - len(kept)

    def _completion(self, request: Request, row: Row, cut_tokens: int) -> Completion:
        start = self._visible_from(row)
        visible = [
            logprob
            for token, logprob in zip(row.tokens[start:], row.logprobs[start:], strict=True)
            if token not in self._special and token not in self._end_ids
        ]
        text = self._tokenizer.decode(row.tokens[start:], skip_special_tokens=True)
        thought = self._tokenizer.decode(row.tokens[:start], skip_special_tokens=True)
        more_thought, text = split_thinking(text)  # where the marks are no tokens of their own
        thought = thought.replace(THINK_START, "").replace(THINK_END, "").strip()
        return Completion(
            text=text,
            prompt_tokens=len(row.prompt),
            completion_tokens=len(row.tokens),
            latency_ms=row.latency_ms,
            token_logprobs=tuple(visible) if request.logprobs else None,
            finish="stop" if row.stopped else "length",
            thinking_text=thought or more_thought,
            cut_prompt_tokens=cut_tokens,
        )

    def _visible_from(self, row: Row) -> int:
        """Number of the first visible token; thinking that never ended hides them all.

        Some templates open the thinking in the prompt, within its last few tokens.
        """
        if self._think_end is not None and self._think_end in row.tokens:
            return len(row.tokens) - row.tokens[::-1].index(self._think_end)
        last = row.prompt[-3:]
        opened = self._think_start in row.tokens or (self._think_start in last and self._think_end not in last)
        return len(row.tokens) if opened and self._think_start is not None else 0


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
