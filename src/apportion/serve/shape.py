"""The shape of a chunk: all its bytes but a text's. What has the shape of a chunk that was read needs no reading.

Nearly all chunks of a stream differ only in the text that they bring. One of them is read as JSON; those after it are
compared with it byte by byte, and only their text is looked through for what would make it no JSON string.
"""

import re
from dataclasses import dataclass
from typing import Any

from apportion.serve.events import data_of, object_in
from apportion.serve.upstream_errors import choices_of

_BEGINS = re.compile(rb'"(?:content|reasoning_content|reasoning)":\s*"')
_TEXT = re.compile(  # the inside of a JSON string in well-formed UTF-8; it never turns back, so its time is linear
    rb'(?:[ !#-\[\]-\x7f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
    rb"|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*+"
)
_MARK = "the text of a chunk"


@dataclass(frozen=True, slots=True)
class Shape:
    """The bytes of an event before and after a text of a delta, both quotation marks included."""

    before: bytes
    after: bytes

    def fits(self, one: bytes) -> bool:
        """Whether an event, read as JSON, would differ from the one with this shape in that text alone.

        >>> shape = Shape(b'data: {"choices": [{"delta": {"content": "', b'"}}]}')
        >>> [shape.fits(b'data: {"choices": [{"delta": {"content": "' + one + b'"}}]}') for one in (b"Bern", b'"')]
        [True, False]
        """
        return (
            one.startswith(self.before)
            and one.endswith(self.after)
            and _TEXT.fullmatch(one, len(self.before), len(one) - len(self.after)) is not None
        )


def shape_of(one: bytes) -> Shape | None:
    """The shape of an event that was read as a chunk; None where it has no text, or one that cannot be told apart.

    Where the text is, is tried: with another in its place, that other must be the value of a delta's field. So it is
    one whole string of the JSON, and any other string may stand there.
    """
    found = _BEGINS.search(one)
    if found is None:
        return None
    text = _TEXT.match(one, found.end())
    assert text is not None, "an empty text matches"
    before, after = one[: found.end()], one[text.end() :]
    if not after.startswith(b'"') or _MARK.encode() in one:
        return None
    tried = object_in(data_of(before + _MARK.encode() + after)) or {}
    return Shape(before, after) if any(_has_mark(choice) for choice in choices_of(tried) or ()) else None


def _has_mark(choice: dict[str, Any]) -> bool:
    return _MARK in (choice.get("delta") or {}).values()
