"""The game: players, what widths cost them, rounded weights, and what was measured of them."""

from apportion.bits.game.bank import WeightBank
from apportion.bits.game.costs import Costs, costs_from, costs_of, widths_by_path
from apportion.bits.game.game import (
    COALITIONS,
    Game,
    MeasuredGame,
    Values,
    full_precision_nll,
    naive_values,
    own_nll,
    require_finite,
    values_of,
)
from apportion.bits.game.players import Assignment, Player, decode, encode, players_of, require_kind
from apportion.bits.game.samples import Samples, load_samples
from apportion.bits.game.sampling import measure, sample

__all__ = [
    "COALITIONS",
    "Assignment",
    "Costs",
    "Game",
    "MeasuredGame",
    "Player",
    "Samples",
    "Values",
    "WeightBank",
    "costs_from",
    "costs_of",
    "decode",
    "encode",
    "full_precision_nll",
    "load_samples",
    "measure",
    "naive_values",
    "own_nll",
    "players_of",
    "require_finite",
    "require_kind",
    "sample",
    "values_of",
    "widths_by_path",
]
