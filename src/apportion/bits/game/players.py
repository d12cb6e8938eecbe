"""The players of the game: blocks, or linears, tied where servers need equal widths."""

from dataclasses import dataclass

from apportion.core.errors import InputError
from apportion.models.structure import Layout

TIED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
KINDS = ("blocks", "linears")
Assignment = tuple[int, ...]
"""Bits of every player, in the players' order (model order)."""


@dataclass(frozen=True, slots=True)
class Player:
    """A set of linears inside one block that always have the same width."""

    name: str
    block: int
    linears: tuple[str, ...]


def players_of(layout: Layout, kind: str = "blocks", *, untie: bool = False) -> tuple[Player, ...]:
    """The players in model order.

    Args:
        kind: `blocks` (one player per block) or `linears` (one per linear, with q/k/v and gate/up tied).
        untie: leave every linear free; servers that fuse q/k/v and gate/up cannot load such a plan.

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


def uniform(players: tuple[Player, ...], bits: int) -> Assignment:
    """Every player at the same width."""
    return (bits,) * len(players)
