"""Average bits or bytes on disk -> how many bytes the players may spend."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from apportion.core.arrays import NDArray
from apportion.core.errors import BudgetError, InputError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@runtime_checkable
class Costs(Protocol):
    """What a budget needs to know: samples and sensitivities both have it."""

    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def player_bytes(self) -> Int[NDArray[np.int64], "players widths"]: ...
    @property
    def fixed_bytes(self) -> int: ...


@dataclass(frozen=True)
class CostTable:
    """What every width of every player costs, before anything is measured."""

    widths: tuple[int, ...]
    player_bytes: Int[NDArray[np.int64], "players widths"]
    fixed_bytes: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent: `player_bytes` on the players' tensors, as asked for by `asked`."""

    player_bytes: int
    asked: str


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 24MB (10^6) or 24MiB (2^20).

    >>> parse_bytes("24MB"), parse_bytes("1.5 KiB"), parse_bytes("1.001KB")
    (24000000, 1536, 1001)

    Raises:
        InputError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS:
        raise InputError(f"--max-bytes {text}: not a size", "write it like 24MB, 1.5GiB or 24000000")
    return int(Decimal(match[1]) * UNITS[match[2].upper()])


def budget_from_bits(costs: Costs, average_bits: float) -> Budget:
    """The paper's budget: B(b) = B_low + (b - low) / (high - low) * (B_high - B_low), rounded down.

    Raises:
        BudgetError: outside [lowest width, highest width].
    """
    low, high = costs.widths[0], costs.widths[-1]
    if not low <= average_bits <= high:
        raise BudgetError(
            f"--avg-bits {average_bits}: expected from {low} (all at the lowest width) to {high}",
            "choose a budget in this range or other --widths",
        )
    smallest, largest = (int(costs.player_bytes[:, column].sum()) for column in (0, -1))
    spend = smallest + (average_bits - low) / (high - low) * (largest - smallest)
    return Budget(int(np.floor(spend + 1e-6)), f"{average_bits:g} bits on average")


def budget_from_bytes(costs: Costs, max_bytes: int) -> Budget:
    """A budget of the weight file(s) on disk, everything in them counted.

    Raises:
        BudgetError: below the smallest or above the largest plan (difference in bytes).
    """
    smallest, largest = (int(costs.player_bytes[:, column].sum()) + costs.fixed_bytes for column in (0, -1))
    if max_bytes < smallest:
        raise BudgetError(
            f"--max-bytes {max_bytes:,}: {smallest - max_bytes:,} bytes short of the smallest plan ({smallest:,}: "
            f"all at {costs.widths[0]} bits, {costs.fixed_bytes:,} of it never quantized)",
            f"give at least {smallest:,} bytes, or a lower width",
        )
    if max_bytes > largest:
        raise BudgetError(
            f"--max-bytes {max_bytes:,}: {max_bytes - largest:,} bytes above the largest plan ({largest:,}: all at "
            f"{costs.widths[-1]} bits)",
            f"give at most {largest:,} bytes, or a higher width",
        )
    return Budget(max_bytes - costs.fixed_bytes, f"{max_bytes:,} bytes on disk")
