"""Samples: the measured values of coalitions, and all that is needed to read them without the model.

A folder: `values.log` (append-only, one checksummed line per coalition, safe against a kill at any moment),
`windows.safetensors` (the calibration text) and, written last, `samples.json`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from apportion.bits.game.game import Values, decode, encode
from apportion.bits.game.players import Assignment, Player, uniform
from apportion.bits.game.spqe import asked_by
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json, read_json, write_json
from apportion.core.errors import ArtifactCorruptError
from apportion.core.log import read_log

VALUES = "values.log"
WINDOWS = "windows.safetensors"
SAMPLES = "samples.json"


@dataclass(frozen=True)
class Samples:
    """What was measured, on what.

    Attributes:
        players: in model order.
        widths: bits that players may have, rising.
        player_bytes: [players, widths] bytes of each player's saved tensors.
        player_parameters: [players] number of weights.
        fixed_bytes: bytes of the checkpoint's tensors that are never quantized.
        orders: [permutations, players] the permutations of SPQE.
        values: NLL per window of every measured coalition, in nats per token.
        nll_fp: NLL per window of the checkpoint's own weights.
        settings: model, text and rounding by digest and name: what the values depend on.
        counts: evaluations, block forwards, naive block forwards, seconds.
    """

    players: tuple[Player, ...]
    widths: tuple[int, ...]
    player_bytes: Int[NDArray[np.int64], "players widths"]
    player_parameters: Int[NDArray[np.int64], " players"]
    fixed_bytes: int
    orders: Int[NDArray[np.int64], "permutations players"]
    values: Values
    nll_fp: Float[NDArray[np.float64], " windows"]
    settings: Json
    counts: Json

    @property
    def low(self) -> int:
        return self.widths[0]

    @property
    def high(self) -> int:
        return self.widths[-1]

    def mean(self, assignment: Assignment) -> float:
        """Mean NLL of a measured coalition."""
        return float(self.values[assignment].mean())

    def means(self) -> dict[Assignment, float]:
        """Mean NLL of every measured coalition."""
        return {assignment: float(nll.mean()) for assignment, nll in self.values.items()}

    @property
    def nll_high(self) -> float:
        return self.mean(uniform(self.players, self.high))

    @property
    def nll_low(self) -> float:
        return self.mean(uniform(self.players, self.low))


def save_samples(samples: Samples, folder: Path) -> None:
    """Write `samples.json` beside the log that already holds the values; its existence means completeness."""
    write_json(
        folder / SAMPLES,
        {
            "players": samples.players,
            "widths": samples.widths,
            "player_bytes": samples.player_bytes,
            "player_parameters": samples.player_parameters,
            "fixed_bytes": samples.fixed_bytes,
            "orders": samples.orders,
            "nll_fp": samples.nll_fp,
            "settings": samples.settings,
            "counts": samples.counts,
            "coalitions": len(samples.values),
        },
    )


def load_samples(folder: Path) -> Samples:
    """Read a complete samples folder.

    Raises:
        ArtifactError: not complete. ArtifactCorruptError: a field is missing or malformed, or the log lacks
            coalitions.
    """
    content = read_json(folder / SAMPLES)
    _, records, _ = read_log(folder / VALUES)
    known = {decode(record["widths"]): np.asarray(record["nll"], dtype=np.float64) for record in records}
    try:
        return samples_from(content, known)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactCorruptError(
            f"{folder}: field or coalition {error} is missing or malformed",
            "take the samples again into another --out",
        ) from error


def samples_from(content: Json, known: Values) -> Samples:
    """The saved fields, and of the known values those that the permutations asked for, in the order measured."""
    widths, players = tuple(content["widths"]), tuple(player_from(item) for item in content["players"])
    orders = np.asarray(content["orders"], dtype=np.int64).reshape(-1, len(players))
    wanted = asked_by(orders, widths[0], widths[-1])
    for item in wanted - known.keys():
        raise KeyError(encode(item))
    return Samples(
        players=players,
        widths=widths,
        player_bytes=np.asarray(content["player_bytes"], dtype=np.int64),
        player_parameters=np.asarray(content["player_parameters"], dtype=np.int64),
        fixed_bytes=content["fixed_bytes"],
        orders=orders,
        values=only(known, wanted),
        nll_fp=np.asarray(content["nll_fp"], dtype=np.float64),
        settings=content["settings"],
        counts=content["counts"],
    )


def only(values: Values, wanted: Collection[Assignment]) -> Values:
    """Some of the values, in the order measured: what others asked for must not change an estimate."""
    return {item: nll for item, nll in values.items() if item in wanted}


def player_from(item: dict[str, Any]) -> Player:
    """A player from its JSON."""
    return Player(item["name"], item["block"], tuple(item["linears"]))
