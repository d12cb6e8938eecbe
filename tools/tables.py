"""Markdown tables."""

from collections.abc import Iterable, Sequence


def markdown(head: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
