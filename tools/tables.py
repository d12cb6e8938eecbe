"""Markdown tables, and what stands in their cells."""

from collections.abc import Iterable, Mapping, Sequence


def markdown(head: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def interval(given: Mapping[str, float]) -> str:
    """A difference with its interval.

    >>> interval({"mean": 0.04271, "low": 0.03403, "high": 0.05212})
    '+0.043 [+0.034, +0.052]'
    """
    return f"{given['mean']:+.3f} [{given['low']:+.3f}, {given['high']:+.3f}]"
