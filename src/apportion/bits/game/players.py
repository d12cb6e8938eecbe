"""The players of the game: blocks, or linears, tied where servers need equal widths."""

from dataclasses import dataclass
from typing import Any

from apportion.core.errors import InputError
from apportion.models.structure import Layout, expert_of, experts_of, fused

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


def players_of(
    layout: Layout, kind: str = "blocks", *, untie: bool = False, per_expert: bool = False
) -> tuple[Player, ...]:
    """Players in model order.

    Args:
        kind: `blocks` (one per decoder block, as in the paper) or `linears`.
        untie: leave q/k/v and gate/up free of each other; servers that fuse them then cannot load the result.
        per_expert: a player for each expert, not one for all of a block; servers look them up as one, too.

    Raises:
        InputError: unknown kind.
    """
    require_kind(kind)
    if kind == "blocks":
        return tuple(Player(f"block {i}", i, linears) for i, linears in enumerate(layout.linears) if linears)
    return tuple(
        Player(f"block {block} {name}", block, group)
        for block, linears in enumerate(layout.linears)
        for name, group in named([(linear,) for linear in linears] if untie else fused(linears, per_expert=per_expert))
    )


def named(groups: list[tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """Groups of a block with the names of their linears: the last part, or all of it where two would be called alike.

    >>> [name for name, _ in named([("attn.q_proj", "attn.k_proj"), ("attn.key",), ("mlp.key",), ("m.experts.0.w1",)])]
    ['q_proj/k_proj', 'attn.key', 'mlp.key', 'm.experts']
    >>> [name for name, _ in named([("m.experts.0.w1", "m.experts.0.w2"), ("m.experts.1.w1", "m.experts.1.w2")])]
    ['m.experts.0', 'm.experts.1']
    """
    owners = [experts_of(group[0]) for group in groups]
    short = ["/".join(linear.rsplit(".", 1)[-1] for linear in group) for group in groups]
    found = []
    for name, group in zip(short, groups, strict=True):
        if experts := experts_of(group[0]):
            name = experts if owners.count(experts) == 1 else expert_of(group[0])
        elif short.count(name) > 1:
            name = "/".join(group)
        found.append((name, group))
    return found


def require_kind(kind: str) -> None:
    """Refuse unknown players.

    Raises:
        InputError: naming the known ones.
    """
    if kind not in KINDS:
        raise InputError(f"--players {kind}: unknown", f"choose from {', '.join(KINDS)}")


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
