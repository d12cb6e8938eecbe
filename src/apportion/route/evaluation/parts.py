"""Finished splits of an evaluation on disk, so that an error or a kill later does not lose them."""

import json
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np

from apportion.core.artifact import Json, plain, write_bytes
from apportion.route.evaluation.contest import Part, Played
from apportion.route.router.utility import Ints, Weights

FIELDS = tuple(one.name for one in fields(Played))


@dataclass(frozen=True, slots=True)
class Parts:
    """A folder with one file for each split; None keeps nothing."""

    folder: Path | None

    def load(self, number: int, rows: Ints) -> Part | None:
        """A split that was finished before; None where it was not, or was of other questions."""
        path = self._path(number)
        if path is None or not path.exists():
            return None
        with np.load(path) as arrays:
            part = _unpacked(json.loads(str(arrays["meta"])), dict(arrays))
        return part if np.array_equal(part.rows, rows) else None

    def save(self, number: int, part: Part) -> Part:
        """Keep a split, and give it back."""
        path = self._path(number)
        if path is not None:
            buffer = BytesIO()
            np.savez_compressed(buffer, **_packed(part))  # type: ignore[arg-type]  # its stub has no arrays by name
            write_bytes(path, buffer.getvalue())
        return part

    def clear(self) -> None:
        """Remove what was kept, once everything is written."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.glob("*.npz"):
                path.unlink()
            self.folder.rmdir()

    def _path(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / f"split-{number}.npz"


def _packed(part: Part) -> dict[str, np.ndarray]:
    """Arrays by name, and everything else as JSON."""
    keys = list(part.played)
    meta: Json = {
        "keys": [[name, weights.token, weights.latency] for name, weights in keys],
        "tiers": [[weights.token, weights.latency, counts] for weights, counts in part.tiers.items()],
        "calibration": list(part.calibration),
        "features": part.features,
    }
    stacked = {name: np.stack([getattr(part.played[key], name) for key in keys]) for name in FIELDS}
    columns = np.stack([part.columns[key] for key in keys])
    return {"meta": np.array(json.dumps(plain(meta))), "rows": part.rows, "columns": columns, **stacked}


def _unpacked(meta: Json, arrays: dict[str, np.ndarray]) -> Part:
    keys = [(name, Weights(token, latency)) for name, token, latency in meta["keys"]]
    return Part(
        rows=arrays["rows"],
        played={key: Played(*(arrays[name][i] for name in FIELDS)) for i, key in enumerate(keys)},
        columns={key: arrays["columns"][i] for i, key in enumerate(keys)},
        tiers={Weights(token, latency): counts for token, latency, counts in meta["tiers"]},
        calibration=tuple(meta["calibration"]),
        features=tuple(meta["features"]),
    )
