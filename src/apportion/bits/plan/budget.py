"""Average bits or bytes on disk -> how many bytes the players may spend."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import product

from apportion.bits.game import Costs
from apportion.core.errors import BudgetError, InputError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
LEFT = "more than the largest plan takes"  # what `asked` says of a budget that is not used up


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent: `player_bytes` on the players' tensors, as asked for by `asked`."""

    player_bytes: int
    asked: str


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 24MB (10^6), 24MiB (2^20) or 1.2TB.

    >>> parse_bytes("24MB"), parse_bytes("1.5 KiB"), parse_bytes("1.001KB"), parse_bytes("5G"), parse_bytes("2,300,000")
    (24000000, 1536, 1001, 5000000000, 2300000)

    Raises:
        InputError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\d{1,3}(?:,\d{3})+)\s*([A-Za-z]*)\s*", text)
    unit = match[2].upper().removesuffix("B") if match else ""
    if not match or unit not in UNITS:
        raise InputError(f"--max-bytes {text}: not a size", "write it like 24MB, 5G, 1.5GiB, 24000000 or 24,000,000")
    return int(Decimal(match[1].replace(",", "")) * UNITS[unit])


def bits_range(costs: Costs) -> tuple[float, float]:
    """The least and the most that `budget_from_bits` takes: all at the lowest width, and all at that of the most bits.

    The lowest width is that of the fewest bytes: it may have more bits than a higher one of smaller groups.
    """
    level = [costs.average_bits(costs.uniform(column)) for column in range(len(costs.widths))]
    return level[0], max(level)


def budget_from_bits(costs: Costs, average_bits: float) -> Budget:
    """The most bytes within which no mix of widths has more bits on average.

    Between two widths of one group size, and between any that lie on their line, it is the paper's budget:
    B(b) = B_low + (b - low) / (high - low) * (B_high - B_low), rounded down. Widths of several group sizes may lie
    below that line (w3g64 between w2g32 and w4g64), and the budget with them.

    Args:
        costs: of samples, a sensitivity or a quantizer.
        average_bits: mean bits over the quantized weights, scales not counted.

    Returns:
        Bytes that the players' tensors may take, scales included.

    Raises:
        BudgetError: outside [lowest width, width of the most bits].

    Cost: none worth naming.

    Source: CoopQ (Findings of ACL 2026), memory budget; in exact bytes here.

    >>> from apportion import Recipe, open_model
    >>> costs = open_model(MODEL, Recipe(group_size=32)).costs
    >>> smallest, largest = (budget_from_bits(costs, bits).player_bytes for bits in (2, 4))
    >>> budget_from_bits(costs, 3).player_bytes == (smallest + largest) // 2
    True
    """
    low, high = bits_range(costs)
    if not low <= average_bits <= high:
        raise BudgetError(
            f"--avg-bits {average_bits}: expected from {low:g} (all at the lowest width) to {high:g}",
            "choose a budget in this range or other --widths",
        )
    return Budget(bytes_for(costs, Fraction(str(float(average_bits)))), f"{average_bits:g} bits on average")


def bytes_for(costs: Costs, wanted: Fraction) -> int:
    """Bytes of the cheapest mix of two widths with so many bits on average; of the largest plan where none has more."""
    levels = [costs.uniform(column) for column in range(len(costs.widths))]
    points = [(Fraction(costs.average_bits(level)), costs.spent(level)) for level in levels]
    mixes = [
        smaller + (wanted - few) / (many - few) * (larger - smaller)
        for (few, smaller), (many, larger) in product(points, repeat=2)
        if few <= wanted < many
    ]
    return int(min(mixes, default=points[-1][1]))


def budget_from_bytes(costs: Costs, max_bytes: int) -> Budget:
    """A budget of the weight file(s) on disk, everything in them counted.

    Args:
        costs: of samples, a sensitivity or a quantizer.
        max_bytes: size of all weight files together.

    Returns:
        Bytes that the players' tensors may take. A budget above the largest plan is the largest plan's; the room that
        is left is told by the plan (`Plan.asked`).

    Raises:
        BudgetError: below the smallest plan (difference in bytes).

    Cost: none worth naming.

    >>> from apportion import Recipe, open_model
    >>> costs = open_model(MODEL, Recipe(group_size=32)).costs
    >>> budget_from_bytes(costs, costs.largest() + 5).asked.split(", ")[1]
    '5 more than the largest plan takes (all at w4g32; more --widths could use them)'
    """
    smallest, largest = costs.smallest(), costs.largest()
    if max_bytes < smallest:
        raise BudgetError(
            f"budget of {max_bytes:,} bytes: {smallest - max_bytes:,} bytes short of the smallest plan ({smallest:,}: "
            f"all at {costs.widths[0].name}, {costs.fixed_bytes:,} of it outside of the players)",
            f"give at least {smallest:,} bytes, or a lower width",
        )
    asked = f"{max_bytes:,} bytes on disk"
    if max_bytes > largest:
        asked += f", {max_bytes - largest:,} {LEFT} (all at {costs.widths[-1].name}; more --widths could use them)"
    return Budget(min(max_bytes, largest) - costs.fixed_bytes, asked)
