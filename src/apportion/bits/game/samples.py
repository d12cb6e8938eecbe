"""Samples: the measured values of coalitions, and all that is needed to read them without the model.

A folder: `values.log` (append-only, one checksummed line per coalition, safe against a kill at any moment),
`windows.safetensors` (the calibration text) and, written last, `samples.json`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from apportion.bits.game.costs import Costs, costs_from
from apportion.bits.game.game import Values, values_of
from apportion.bits.game.players import Assignment, encode
from apportion.bits.game.spqe import asked_by
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json, read_json, write_json
from apportion.core.errors import ArtifactCorruptError
from apportion.core.log import read_log
from apportion.models.text import Windows, load_calibration

VALUES = "values.log"
WINDOWS = "windows.safetensors"
SAMPLES = "samples.json"


@dataclass(frozen=True)
class Samples:
    """What was measured, on what.

    Attributes:
        costs: players, widths and what they cost.
        windows: the text that values were measured on.
        orders: [permutations, players] the permutations of SPQE.
        values: NLL per window of every measured coalition, in nats per token.
        nll_fp: NLL per window of the checkpoint's own weights.
        settings: model, text and rounding by digest and name: what the values depend on.
        counts: evaluations, block forwards, naive block forwards, seconds.
    """

    costs: Costs
    windows: Windows
    orders: Int[NDArray[np.int64], "permutations players"]
    values: Values
    nll_fp: Float[NDArray[np.float64], " windows"]
    settings: Json
    counts: Json

    def mean(self, assignment: Assignment) -> float:
        """Mean NLL of a measured coalition."""
        return float(self.values[assignment].mean())

    def means(self) -> dict[Assignment, float]:
        """Mean NLL of every measured coalition."""
        return {assignment: float(nll.mean()) for assignment, nll in self.values.items()}

    @property
    def nll_high(self) -> float:
        return self.mean(self.costs.uniform(-1))

    @property
    def nll_low(self) -> float:
        return self.mean(self.costs.uniform(0))


def save_samples(samples: Samples, folder: Path) -> None:
    """Write `samples.json` beside log and windows, which are there already; its existence means completeness."""
    write_json(
        folder / SAMPLES,
        {
            "costs": samples.costs,
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
    windows = load_calibration(folder / WINDOWS)
    try:
        return samples_from(content, windows, values_of(records))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactCorruptError(
            f"{folder}: field or coalition {error} is missing or malformed",
            "take the samples again into another --out",
        ) from error


def samples_from(content: Json, windows: Windows, known: Values) -> Samples:
    """The saved fields, and of the known values those that the permutations asked for, in the order measured."""
    costs = costs_from(content["costs"])
    orders = np.asarray(content["orders"], dtype=np.int64).reshape(-1, len(costs.players))
    wanted = asked_by(orders, 0, costs.high)
    for item in wanted - known.keys():
        raise KeyError(encode(item))
    return Samples(
        costs=costs,
        windows=windows,
        orders=orders,
        values=only(known, wanted),
        nll_fp=np.asarray(content["nll_fp"], dtype=np.float64),
        settings=content["settings"],
        counts=content["counts"],
    )


def only(values: Values, wanted: Collection[Assignment]) -> Values:
    """Some of the values, in the order measured: what others asked for must not change an estimate."""
    return {item: nll for item, nll in values.items() if item in wanted}
