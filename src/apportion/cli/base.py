"""The typer application and how results are printed: what every command module stands on."""

import json
from collections.abc import Mapping
from typing import Any

import typer

from apportion.core.artifact import plain

app = typer.Typer(
    name="apportion",
    help="Fit a language model into the memory you have; spend retrieval and reasoning only where needed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def printable(text: str) -> str:
    """Text of a model without control characters, which could move the cursor or clear the terminal.

    >>> printable("one\\x1b[2Jtwo\\nthree")
    'one\ufffd[2Jtwo\\nthree'
    """
    return "".join(one if one in "\n\t" or one.isprintable() or ord(one) > 0x9F else "\ufffd" for one in text)


def emit(value: Mapping[str, Any], *, as_json: bool, text: str) -> None:
    """Print one JSON object, or the text for people."""
    print(json.dumps(plain(value), ensure_ascii=False) if as_json else printable(text))
