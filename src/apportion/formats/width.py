"""A width: what one weight costs and how coarse it is. Integer grids are made here, other kinds by their formats.

A width has a name, not a digit: `w3g64` is three bits a code and one scale for 64 columns, `Q4_K` a block type of
ggml. What a matrix of some shape takes in bytes, scales included, is its format's to say (`format.Format`).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from apportion.core.errors import InputError

BITS = (2, 3, 4, 8)
SCALE_BITS = 16  # of a scale, where widths are ranked before a checkpoint's dtype is known


@dataclass(frozen=True, slots=True)
class Width:
    """One way to store weights.

    Attributes:
        name: `w3g64`, `Q4_K`.
        bits: what averages count. On integer grids the bits of a code (the paper's bits: scales are counted in bytes);
            of ggml's types the bits per weight of a block, scales included. May be fractional.
        group_size: columns that share a scale; the columns of a matrix are a multiple of it.
    """

    name: str
    bits: float
    group_size: int

    @property
    def code_bits(self) -> int:
        """Bits of one code on an integer grid."""
        return int(self.bits)

    @property
    def lowest(self) -> int:
        """Smallest code of an integer grid, two's complement."""
        return -(1 << (self.code_bits - 1))

    @property
    def highest(self) -> int:
        """Largest code of an integer grid."""
        return (1 << (self.code_bits - 1)) - 1

    @property
    def bits_with_scales(self) -> float:
        """Bits per weight with one 16-bit scale a group; ggml's types hold their scales already.

        >>> grid_width(3, 64).bits_with_scales
        3.25
        """
        return self.bits + SCALE_BITS / self.group_size if self.name.startswith("w") else self.bits


def grid_width(bits: int, group_size: int) -> Width:
    """An integer grid: `bits` per code, one scale for `group_size` columns.

    >>> grid_width(3, 64)
    Width(name='w3g64', bits=3, group_size=64)
    """
    return Width(f"w{bits}g{group_size}", bits, group_size)


def width_named(text: str | int, group_size: int) -> Width:
    """A grid by its name, or by its bits alone, which then has the group size given.

    >>> width_named("w2g32", 64).name, width_named("3", 64).name, width_named(4, 128).name
    ('w2g32', 'w3g64', 'w4g128')

    Raises:
        InputError: neither.
    """
    match = re.fullmatch(r"w?(\d+)(?:g(\d+))?", str(text).strip())
    if not match or (match[2] is None and str(text).strip().startswith("w")):
        raise InputError(f"--widths {text}: not a width", "write bits (3), or bits and group size (w3g64)")
    return grid_width(int(match[1]), int(match[2] or group_size))


def rising(widths: Iterable[Width]) -> tuple[Width, ...]:
    """Widths from the smallest to the largest, each once.

    >>> [width.name for width in rising([grid_width(3, 64), grid_width(2, 32), grid_width(2, 64)])]
    ['w2g64', 'w2g32', 'w3g64']
    """
    return tuple(sorted(dict.fromkeys(widths), key=lambda width: width.bits_with_scales))


def listed(widths: Iterable[Width]) -> str:
    """Names with commas."""
    return ",".join(width.name for width in widths)


def require_bits(widths: tuple[Width, ...], supported: tuple[int, ...], rounding: str) -> None:
    """Refuse widths that are unknown, repeated or alone.

    Raises:
        InputError: naming the offenders and what is supported.
    """
    unknown = [width.code_bits for width in widths if width.bits not in supported]
    if unknown:
        raise InputError(
            f"--widths {listed(widths)}: {unknown} bits not supported by rounding {rounding!r}",
            f"choose from {', '.join(map(str, supported))}",
        )
    if list(widths) != list(rising(widths)) or len(widths) < 2:
        raise InputError(f"--widths {listed(widths)}: expected at least two different widths in rising order, e.g. 2,4")


def require_groups(columns: dict[str, int], group_size: int) -> None:
    """Refuse a group size that does not divide every linear's columns, listing all that it does not.

    Raises:
        InputError: with every offending linear.
    """
    if group_size < 1:
        raise InputError(f"--group-size {group_size}: expected a positive number")
    offenders = [f"{path} ({count} columns)" for path, count in columns.items() if count % group_size]
    if offenders:
        common = math.gcd(*columns.values())
        raise InputError(
            f"--group-size {group_size}: does not divide " + ", ".join(offenders),
            f"a group size that divides all linears divides {common}",
        )
