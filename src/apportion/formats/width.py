"""A width: how many bits, in what groups, and the exact bytes of a tensor stored in it.

Compressed-tensors `pack-quantized`, symmetric, which stock transformers loads (and vLLM's source has):

    weight_packed  int32 [rows, ceil(columns * bits / 32)]   codes, 32 of them in `bits` words, none wasted
    weight_scale   dtype [rows, columns / group]             one scale per group, its sign free
    weight_shape   int64 [2]                                 rows, columns
"""

import math
from dataclasses import dataclass

from apportion.core.errors import InputError

BITS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True, order=True)
class Width:
    """Bits per code and columns per group."""

    bits: int
    group_size: int

    @property
    def lowest(self) -> int:
        """Smallest code, two's complement."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1


def require_bits(widths: tuple[int, ...], supported: tuple[int, ...], rounding: str) -> None:
    """Refuse widths that are unknown, repeated or alone.

    Raises:
        InputError: naming the offenders and what is supported.
    """
    unknown = [bits for bits in widths if bits not in supported]
    if unknown:
        raise InputError(
            f"--widths {','.join(map(str, widths))}: {unknown} not supported by rounding {rounding!r}",
            f"choose from {', '.join(map(str, supported))}",
        )
    if list(widths) != sorted(set(widths)) or len(widths) < 2:
        listed = ",".join(map(str, widths))
        raise InputError(f"--widths {listed}: expected at least two different widths in rising order, e.g. 2,4")


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
