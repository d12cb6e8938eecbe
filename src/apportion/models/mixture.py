"""Texts that windows are drawn from: one file, or several, each with its share of every draw."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from apportion.core.errors import InputError
from apportion.core.seeds import derived_seed
from apportion.models.identity import text_identity
from apportion.models.text import Windows, choose, prefix_of, require_windows, some, unseen_rows, windows_of


@dataclass(frozen=True, slots=True)
class Share:
    """A text file and its part of the windows, beside the other files' parts: 3 to 1 is 0.75 to 0.25."""

    path: Path
    share: float = 1.0


Calibration = Path | tuple[Share, ...] | None
"""A file, several with shares, or None: the model samples its own text."""


def shares_of(calibration: Calibration) -> tuple[Share, ...]:
    """The files and their shares; none where the model samples its own text.

    >>> shares_of(Path("c4.jsonl"))[0].share, shares_of(None)
    (1.0, ())
    """
    if calibration is None:
        return ()
    return calibration if isinstance(calibration, tuple) else (Share(calibration),)


def identity_of(calibration: Calibration) -> str | list[str | None] | None:
    """SHA-256 of every file, by which a finished run knows its text again."""
    if isinstance(calibration, tuple):
        return [text_identity(one.path) for one in calibration]
    return text_identity(calibration)


def checks_of(calibration: Calibration, counts: dict[str, int]) -> list[Callable[[], None]]:
    """What can be refused of texts without reading them; each raises InputError for one value.

    Args:
        counts: windows asked for, by option; every file has at least one of them.
    """
    shares = shares_of(calibration)
    few = {name: count for name, count in counts.items() if 1 <= count < len(shares)}
    return [
        *([] if shares or calibration is None else [require_some]),
        *(partial(require_share, one) for one in shares),
        *(partial(require_once, path) for path in twice([one.path.resolve() for one in shares])),
        *(partial(require_each, name, count, len(shares)) for name, count in few.items()),
    ]


def require_share(one: Share) -> None:
    """Refuse a file that is not there, and a share that is none.

    Raises:
        InputError: saying so.
    """
    if not one.path.is_file():
        raise InputError(f"--calibration {one.path}: no such file", "give a .txt or .jsonl file, or leave it out")
    if not (math.isfinite(one.share) and one.share > 0):
        raise InputError(f"--calibration {one.path}={one.share:g}: expected a share above 0", f"e.g. {one.path}=2")


def require_some() -> None:
    raise InputError("--calibration: no file in it", "give one, or None, and the model samples its own text")


def require_once(path: Path) -> None:
    raise InputError(f"--calibration {path.name}: is given twice", "give each file once, with the sum of its shares")


def require_each(option: str, count: int, files: int) -> None:
    raise InputError(f"{option} {count}: expected at least {files}, one of each --calibration", "raise it")


def twice(paths: Sequence[Path]) -> list[Path]:
    """Those that occur more than once, each once."""
    return [path for path in dict.fromkeys(paths) if paths.count(path) > 1]


@dataclass(frozen=True, eq=False, slots=True)
class Mixture:
    """All windows of some files, to be drawn from by their shares.

    Attributes:
        shares: the files. pools: all windows of each, in reading order.
        bos: whether every window begins with the beginning-of-text token.
    """

    shares: tuple[Share, ...]
    pools: tuple[Int[Tensor, "_ tokens"], ...]
    bos: bool

    @property
    def most(self) -> int:
        """The largest number of windows of which every file has its share."""
        return fitting(self._parts, [len(pool) for pool in self.pools])

    @property
    def _parts(self) -> list[float]:
        return [one.share for one in self.shares]

    def counts(self, windows: int) -> list[int]:
        """How many of so many windows are each file's, at least one.

        Raises:
            InputError: fewer windows than files.
        """
        if windows < len(self.shares):
            raise InputError(f"{windows} windows of {len(self.shares)} texts: expected at least one of each")
        return parted(self._parts, windows)

    def draw(self, windows: int, seed: int) -> Windows:
        """So many windows at random, without overlap, file by file and in reading order; the same for the same seed.

        Raises:
            InputError: a file has fewer than its share.
        """
        counts = self.counts(windows)
        found = []
        for one, pool, count in zip(self.shares, self.pools, counts, strict=True):
            require_windows(pool, count, one.path)
            found.append(choose(pool, count, self._seed(one, seed)))
        return Windows(torch.cat(found), self._told(counts), self.bos)

    def unseen(self, used: Int[Tensor, "used tokens"], windows: int, seed: int) -> Int[Tensor, "unseen tokens"]:
        """At most so many windows, at random and by their shares, that are not among those used."""
        left = [unseen_rows(pool, used) for pool in self.pools]
        count = min(windows, fitting(self._parts, [len(rows) for rows in left]))
        if count < len(self.shares):
            return self.pools[0][:0]
        parts = zip(self.shares, self.pools, left, self.counts(count), strict=True)
        return torch.cat([pool[some(rows, part, self._seed(one, seed))] for one, pool, rows, part in parts])

    def _seed(self, one: Share, seed: int) -> int:
        return seed if len(self.shares) == 1 else derived_seed(seed, one.path.name)

    def _told(self, counts: Sequence[int]) -> str:
        if len(counts) == 1:
            return str(self.shares[0].path)
        return ", ".join(f"{count} of {one.path.name}" for one, count in zip(self.shares, counts, strict=True))


def read_mixture(calibration: Calibration, tokenizer: Any, window_tokens: int, bos: bool | None = None) -> Mixture:
    """Every file as windows; conversations as the model's chat template writes them.

    Args:
        calibration: at least one file. bos: as `prefix_of` takes it.

    Raises:
        InputError: a text that cannot be read or is shorter than one window, or conversations and no chat template.
    """
    shares = shares_of(calibration)
    pools = tuple(windows_of(one.path, tokenizer, window_tokens, bos=bos) for one in shares)
    return Mixture(shares, pools, bool(prefix_of(tokenizer, bos)))


def parted(shares: Sequence[float], whole: int) -> list[int]:
    """A whole number in parts nearest to the shares, none of them empty.

    >>> parted([3, 1], 8), parted([1, 1, 100], 4)
    ([6, 2], [1, 1, 2])
    """
    free = whole - len(shares)
    exact = [free * share / sum(shares) for share in shares]
    counts = [int(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in order[: free - sum(counts)]:
        counts[i] += 1
    return [count + 1 for count in counts]


def fitting(shares: Sequence[float], rooms: Sequence[int]) -> int:
    """The largest number whose parts find room; 0 where a part would be empty.

    >>> fitting([3, 1], [30, 2]), fitting([1], [7]), fitting([1, 1], [5, 0])
    (8, 7, 0)
    """
    if min(rooms) < 1:
        return 0
    total = sum(shares)
    above = min(len(shares) + math.ceil(room * total / share) for room, share in zip(rooms, shares, strict=True))
    counts = range(min(above, sum(rooms)), len(shares) - 1, -1)
    return next(n for n in counts if all(part <= room for part, room in zip(parted(shares, n), rooms, strict=True)))


def spread(counts: Sequence[int], drawn: np.random.Generator) -> list[int]:
    """A random order of windows that lie file by file, of which every run has the files by their shares.

    >>> order = spread([4, 2], np.random.default_rng(0))
    >>> sorted(order), [sum(index < 4 for index in order[at : at + 3]) for at in (0, 3)]
    ([0, 1, 2, 3, 4, 5], [2, 2])
    """
    places = [(np.argsort(drawn.permutation(count)) + 0.5) / count for count in counts]
    return [int(index) for index in np.argsort(np.concatenate(places), kind="stable")]
