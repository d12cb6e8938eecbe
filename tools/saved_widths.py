"""Widths as saved results name them: bits (`2`) before widths had names, names (`w2g64`, `Q4_K`) since."""

import re
from collections import Counter
from collections.abc import Iterable


def labels(widths: Iterable[object]) -> dict[str, str]:
    """What each width is called in a table, by its saved name, in the order given.

    A grid is called by its bits where that tells it from the others, any other width by its name.

    >>> labels(["2", "4"]), labels(["w2g64", "w4g64"])
    ({'2': '2', '4': '4'}, {'w2g64': '2', 'w4g64': '4'})
    >>> labels(["w2g64", "w2g32", "Q4_K"])
    {'w2g64': 'w2g64', 'w2g32': 'w2g32', 'Q4_K': 'Q4_K'}
    """
    names = [str(width) for width in widths]
    short = {name: bits_of(name) for name in names}
    counts = Counter(short.values())
    return {name: short[name] if counts[short[name]] == 1 else name for name in names}


def bits_of(name: str) -> str:
    """The bits of a grid, as text; the name of any other width."""
    found = re.fullmatch(r"w?(\d+)(?:g\d+)?", name)
    return found[1] if found else name


def level(label: str) -> str:
    """`4-bit`, or the name of a width that is not told by its bits."""
    return f"{label}-bit" if label.isdigit() else label
