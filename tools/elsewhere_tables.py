"""Plans of a comparison on the text that they were chosen on, on more of it, and on the text that they are judged on."""

from collections.abc import Mapping
from typing import Any

from tables import markdown

Json = dict[str, Any]


def elsewhere_part(files: Mapping[str, Json]) -> list[str]:
    """Plans of `auto` and of others on the text that they were chosen on, on more of it, and on the test text."""
    lines = []
    for item in (found for name, found in sorted(files.items()) if name.startswith("elsewhere_")):
        rows = [
            [
                row["methods"][1],
                row["text"],
                str(row["windows"]),
                *(f"{nll:.4f}" for nll in row["nll"]),
                signed(row["behind"]),
            ]
            for row in item["rows"]
        ]
        lines += [
            f"{item['title']}, mean NLL in nats; `auto` behind (negative: ahead), with its paired 95 % interval. {item['conditions']}",
            "",
            *markdown(["beside", "text", "windows", "`auto`", "the other", "behind"], rows),
            "",
            f"Made by `{item['command']}`.",
            "",
        ]
    return lines


def signed(found: Json) -> str:
    """A difference with its interval.

    >>> signed({"mean": 0.04271, "low": 0.03403, "high": 0.05212})
    '+0.043 [+0.034, +0.052]'
    """
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
