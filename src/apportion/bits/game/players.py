"""The players of the game: blocks, or linears, tied where servers need equal widths."""

from dataclasses import dataclass
from typing import Any

from apportion.core.errors import InputError
from apportion.models.structure import Layout

TIED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
KINDS = ("blocks", "linears")
Assignment = tuple[int, ...]
"""For every player, in model order, the index of its width in a rising list of widths: 0 is the lowest."""

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Player:
    """A set of linears inside one block that always have the same width."""

    name: str
    block: int
    linears: tuple[str, ...]

    def paths(self, layout: Layout) -> list[str]:
        """Module paths of its linears."""
        return [layout.path(self.block, linear) for linear in self.linears]


def player_from(item: dict[str, Any]) -> Player:
    """A player from its JSON."""
    return Player(item["name"], item["block"], tuple(item["linears"]))


def players_of(layout: Layout, kind: str = "blocks", *, untie: bool = False) -> tuple[Player, ...]:
    """Players in model order.

    Args:
        kind: `blocks` (one per decoder block, as in the paper) or `linears`.
        untie: leave q/k/v and gate/up free of each other; servers that fuse them then cannot load the result.

    Raises:
        InputError: unknown kind.
    """
    require_kind(kind)
    if kind == "blocks":
        return tuple(Player(f"block {i}", i, linears) for i, linears in enumerate(layout.linears))
    return tuple(
        Player(f"block {block} {'/'.join(name.rsplit('.', 1)[-1] for name in group)}", block, group)
        for block, linears in enumerate(layout.linears)
        for group in (singly(linears) if untie else tied(linears))
    )


def require_kind(kind: str) -> None:
    """Refuse unknown players.

    Raises:
        InputError: naming the known ones.
    """
    if kind not in KINDS:
        raise InputError(f"--players {kind}: unknown", f"choose from {', '.join(KINDS)}")


def singly(linears: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(name,) for name in linears]


def tied(linears: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Group linears of one parent that servers fuse; the others stay alone; order by first member.

    >>> tied(("a.q_proj", "a.k_proj", "a.v_proj", "a.o_proj"))
    [('a.q_proj', 'a.k_proj', 'a.v_proj'), ('a.o_proj',)]
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        family = next((i for i, names in enumerate(TIED) if leaf in names), None)
        key = (parent, family) if family is not None else (name, -1)
        groups.setdefault(key, []).append(name)
    return [tuple(group) for group in groups.values()]


def encode(assignment: Assignment) -> str:
    """One digit per player, to the base 36.

    >>> encode((0, 2, 10))
    '02a'
    """
    return "".join(DIGITS[index] for index in assignment)


def decode(text: str) -> Assignment:
    """The assignment of its digits.

    >>> decode("02a")
    (0, 2, 10)
    """
    return tuple(DIGITS.index(digit) for digit in text)
