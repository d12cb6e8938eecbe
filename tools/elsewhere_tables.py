"""Plans of a comparison on the text that they were chosen on, on more of it, and on the text that they are judged on."""

from collections.abc import Mapping
from typing import Any

from tables import interval, markdown

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
                interval(row["behind"]),
            ]
            for row in item["rows"]
        ]
        about = f" {item['conditions']}" if "conditions" in item else ""
        lines += [
            f"{item['title']}, mean NLL in nats; `auto` behind (negative: ahead), with its paired 95 % interval.{about}",
            "",
            *markdown(["beside", "text", "windows", "`auto`", "the other", "behind"], rows),
            "",
            f"Made by `{item['command']}`.",
            "",
        ]
    return lines
