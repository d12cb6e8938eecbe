"""Conversations as the model is given them: a `.jsonl` of messages, put through its own chat template."""

from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from apportion.core.errors import InputError
from apportion.core.lines import HALF, Offenders, holds_half, json_lines
from apportion.models.text import cut, encode, rendered

ROLES = ("system", "user", "assistant", "tool")


def chat_windows(
    path: Path, tokenizer: Any, window_tokens: int, bos: bool | None = None
) -> Int[Tensor, "windows tokens"]:
    """Non-overlapping windows of conversations rendered one after another, in reading order.

    Args:
        path: one `{"messages": [{"role": ..., "content": ...}, ...]}` a line.
        tokenizer: with a chat template, whose special tokens stay. bos: as `prefix_of` takes it.

    Raises:
        InputError: no chat template, lines that are no conversation (all of them named), or too short a text.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"--chat {path}: the reference's tokenizer has no chat template",
            "leave --chat out for a base model, or add chat_template.jinja to its folder",
        )
    text = "".join(rendered(tuple(messages), tokenizer, path) for messages in read_conversations(path))
    return cut(*encode(text, tokenizer, window_tokens, str(path), bos), window_tokens)


def read_conversations(path: Path) -> list[list[dict[str, str]]]:
    """The messages of every line.

    Raises:
        InputError: missing file, or lines that are no conversation, all of them named.
    """
    if not path.is_file():
        raise InputError(f"--chat {path}: no such file", "give a .jsonl file with 'messages' on each line")
    offenders = Offenders(f"--chat {path}", 'each line needs {"messages": [{"role": "user", "content": "..."}, ...]}')
    found = []
    for number, line in json_lines(path, offenders):
        messages = line.get("messages")
        if problem := what_is_wrong(messages):
            offenders.add(f"line {number}", problem)
        else:
            found.append([{"role": item["role"], "content": item["content"]} for item in messages or []])
    offenders.raise_if_any()
    return found


def what_is_wrong(messages: Any) -> str:
    """Why this is no conversation; empty if it is one.

    >>> what_is_wrong([{"role": "user", "content": "Hi"}]), what_is_wrong([{"role": "me", "content": "Hi"}])
    ('', "role 'me', expected one of system, user, assistant, tool")
    """
    if not isinstance(messages, list) or not messages:
        return "no list of messages"
    for item in messages:
        if not isinstance(item, dict) or not isinstance(item.get("content"), str):
            return "a message without content"
        if holds_half(item["content"]):
            return HALF
        if item.get("role") not in ROLES:
            return f"role {item.get('role')!r}, expected one of {', '.join(ROLES)}"
    return ""
