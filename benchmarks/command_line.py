"""Commands as results save them: files by their names, never by the folders of the machine that they ran on."""

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# a path that starts a word or follows one of = , : but is no URL's //host
OUTSIDE = re.compile(r"(?:^|(?<=[=,:]))(?:/(?!/)|\.\./)[^=,:]*")


def own_command() -> str:
    """The command of the benchmark that runs, as one would type it in the project's folder."""
    return shown(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def shown(words: Iterable[object]) -> str:
    """A command of these words, quoted where a shell needs it.

    >>> shown(["apportion", "perplexity", "/data/llama-mini", "--text", "../wiki.txt", "--windows", 128])
    'apportion perplexity llama-mini --text wiki.txt --windows 128'
    """
    return shlex.join(named(str(word)) for word in words)


def named(word: str) -> str:
    """A word whose paths that are absolute or lead out of the folder are relative to the project, or else names.

    >>> named("llama-mini=/data/llama-mini,other=/data/b"), named("out/q3"), named("http://localhost:8000/v1")
    ('llama-mini=llama-mini,other=b', 'out/q3', 'http://localhost:8000/v1')
    """
    return OUTSIDE.sub(lambda match: short(Path(match[0])), word)


def short(path: Path) -> str:
    """A path inside the project relative to it; the name of any other."""
    whole = path.resolve()
    return str(whole.relative_to(PROJECT)) if whole.is_relative_to(PROJECT) else path.name
