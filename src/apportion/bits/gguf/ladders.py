"""Which types each matrix may have, what they take of the file, and which matrices have no choice."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from apportion.bits.game import Assignment, Costs, Player
from apportion.bits.rounding.ggml import NEEDS_IMPORTANCE
from apportion.core.errors import BudgetError, InputError
from apportion.formats.ggml import FALLBACKS, TYPES, block_of, ggml_width, matrix_bytes, resolve
from apportion.formats.gguf_file import Fields, TensorEntry, file_bytes, padded
from apportion.formats.width import Width

DEFAULT_TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
NEVER_BETTER = ("IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # where columns allow the K-quants of their size


@dataclass(frozen=True)
class Ladders:
    """The players of a file.

    Attributes:
        names: GGUF name of every player's matrix, in the file's order.
        types: its types, rising in bytes. fallbacks: types that its columns cannot hold -> what it has instead.
        costs: as the search sees them: rungs are numbered from the lowest, shorter ladders end in repeats of their top.
        fixed: tensors without a choice, and their types (norms, biases; matrices whose columns fit no block).
    """

    names: tuple[str, ...]
    types: tuple[tuple[str, ...], ...]
    fallbacks: Mapping[str, Mapping[str, str]]
    costs: Costs
    fixed: Mapping[str, str]

    def chosen(self, assignment: Assignment) -> dict[str, str]:
        """Type of every player's matrix."""
        return {
            name: types[min(rung, len(types) - 1)]
            for name, types, rung in zip(self.names, self.types, assignment, strict=True)
        }

    def entries(self, shapes: Mapping[str, tuple[int, ...]], assignment: Assignment) -> dict[str, TensorEntry]:
        """Every tensor of the file under a plan."""
        types = {**self.fixed, **self.chosen(assignment)}
        return {name: TensorEntry(types[name], shape) for name, shape in shapes.items()}


def ladder(types: Sequence[str], columns: int, *, weighted: bool = True) -> tuple[tuple[str, ...], dict[str, str]]:
    """Types that a matrix of so many columns may have, rising, and what replaces those that it cannot.

    >>> ladder(("Q2_K", "Q4_K", "Q6_K", "Q8_0"), 576)
    (('IQ4_NL', 'Q5_0', 'Q8_0'), {'Q2_K': 'IQ4_NL', 'Q4_K': 'Q5_0', 'Q6_K': 'Q8_0'})
    >>> ladder(("Q2_K", "Q4_1", "Q4_K"), 512)
    (('Q2_K', 'Q4_K'), {})
    >>> ladder(("IQ2_XS", "Q4_K"), 512, weighted=False)
    (('Q2_K', 'Q4_K'), {'IQ2_XS': 'Q2_K'})
    """
    given = {name: resolve("Q2_K" if name in NEEDS_IMPORTANCE and not weighted else name, columns) for name in types}
    wide = columns % block_of("Q4_K")[0] == 0 and any(name in FALLBACKS for name in types)
    found = {own for own in given.values() if not (wide and own in NEVER_BETTER)}
    rising = tuple(sorted(found, key=lambda name: (ggml_width(name).bits, name)))
    return rising, {name: own for name, own in given.items() if own != name}


def require_types(types: Sequence[str]) -> None:
    """Refuse unknown types, and a single one.

    Raises:
        InputError: naming them.
    """
    unknown = [name for name in types if name not in TYPES]
    if unknown or len(set(types)) < 2:
        raise InputError(
            f"--types {','.join(types)}: " + (f"{', '.join(unknown)} unknown" if unknown else "expected two or more"),
            f"choose from {', '.join(TYPES)}",
        )


def ladders_of(
    shapes: Mapping[str, tuple[int, ...]],
    choosable: Sequence[str],
    types: Sequence[str],
    fields: Fields,
    unweighted: Collection[str] = (),
) -> Ladders:
    """The players of a source.

    Args:
        shapes: of every tensor, by GGUF name. choosable: the matrices that the model multiplies with.
        types: that were asked for. fields: the file's metadata, of its final size.
        unweighted: matrices that have no importance: types that need one are replaced by Q2_K there.
    """
    found = {name: ladder(types, shapes[name][-1], weighted=name not in unweighted) for name in choosable}
    players = [name for name in shapes if name in found and found[name][0] != ("F16",)]
    fixed = {name: "F16" if name in found else "F32" for name in shapes if name not in players}
    own = tuple(found[name][0] for name in players)
    rungs = max(map(len, own))
    filled = [(*rising, *rising[-1:] * (rungs - len(rising))) for rising in own]
    sizes = [[padded(matrix_bytes(t, *shapes[name])) for t in row] for name, row in zip(players, filled, strict=True)]
    bits = np.asarray([[ggml_width(kind).bits for kind in row] for row in filled])
    weights = np.asarray([int(np.prod(shapes[name])) for name in players], dtype=np.int64)
    smallest = {**{name: row[0] for name, row in zip(players, own, strict=True)}, **fixed}
    whole = file_bytes(fields, {name: TensorEntry(smallest[name], shape) for name, shape in shapes.items()})
    costs = Costs(
        players=tuple(Player(name, index, ()) for index, name in enumerate(players)),
        widths=tuple(Width(f"rung {i}", float(bits[:, i].mean()), 32) for i in range(rungs)),
        bytes=np.asarray(sizes, dtype=np.int64),
        bits=bits,
        parameters=weights,
        fixed_bytes=whole - sum(row[0] for row in sizes),
    )
    return Ladders(tuple(players), own, {name: found[name][1] for name in players}, costs, fixed)


def require_budget(ladders: Ladders, max_bytes: int) -> None:
    """Refuse a budget below the smallest file.

    Raises:
        BudgetError: with the smallest file's bytes and what they are.
    """
    costs = ladders.costs
    if max_bytes >= costs.smallest():
        return
    largest = np.argsort(-costs.bytes[:, 0], kind="stable")[:3].tolist()
    parts = [f"{ladders.names[i]} {costs.bytes[i, 0]:,} ({ladders.types[i][0]})" for i in largest]
    raise BudgetError(
        f"--max-bytes {max_bytes:,}: {costs.smallest() - max_bytes:,} bytes short of the smallest file "
        f"({costs.smallest():,} bytes: {', '.join(parts)}, ..., {costs.fixed_bytes:,} of metadata, norms and others)",
        f"give at least {costs.smallest():,} bytes, or smaller --types",
    )
