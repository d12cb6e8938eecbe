"""Long documents -> pieces of at most a given number of characters, cut where a reader would pause."""

import re
from collections.abc import Iterator

MAX_CHARS = 2000  # a passage: about 500 tokens of English

_HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*")
_FENCE = re.compile(r"[ ]{0,3}(`{3,}|~{3,})")
# from the most to the least natural place to cut
_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?])\s+"), re.compile(r"\s+"))


def split_text(text: str, max_chars: int = MAX_CHARS) -> list[str]:
    """Pieces of at most `max_chars` characters, filled greedily; only white space at the cuts is lost.

    Cuts fall between paragraphs; a paragraph that is too long is cut between lines, then sentences, then
    words, and a single longer word anywhere.

    >>> split_text("One two.\\n\\nThree four. Five.", 12)
    ['One two.', 'Three four.', 'Five.']
    """
    pieces = (piece.strip() for piece in _split(text.strip(), max_chars, 0))
    return [piece for piece in pieces if piece]


def _split(text: str, max_chars: int, level: int) -> Iterator[str]:
    if len(text) <= max_chars:
        yield text
        return
    if level == len(_BREAKS):
        yield from (text[at : at + max_chars] for at in range(0, len(text), max_chars))
        return
    start = end = 0  # the piece being filled is text[start:end]
    for part_start, part_end in _parts(text, _BREAKS[level]):
        if part_end - start > max_chars and end > start:
            yield text[start:end]
            start = part_start
        if part_end - part_start > max_chars:
            yield from _split(text[part_start:part_end], max_chars, level + 1)
            start = part_end
        end = part_end
    if end > start:
        yield text[start:end]


def _parts(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    start = 0
    for match in pattern.finditer(text):
        if match.start() > start:
            yield start, match.start()
        start = match.end()
    if start < len(text):
        yield start, len(text)


def markdown_sections(text: str, title: str) -> Iterator[tuple[str, str]]:
    """(heading path, body) of each section that has a body; headings inside code fences are not headings.

    >>> list(markdown_sections("Intro\\n# A\\nx\\n## B\\ny", "Doc"))
    [('Doc', 'Intro'), ('A', 'x'), ('A > B', 'y')]
    """
    path: list[str] = []
    body: list[str] = []
    fence = ""
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        heading = None if fence else _HEADING.fullmatch(line)
        if heading is None:
            body.append(line)
            continue
        if joined := "\n".join(body).strip():
            yield " > ".join(filter(None, path)) or title, joined
        body = []
        depth = len(heading[1])
        path = [*path[: depth - 1], *[""] * (depth - 1 - len(path)), heading[2]]
    if joined := "\n".join(body).strip():
        yield " > ".join(filter(None, path)) or title, joined
