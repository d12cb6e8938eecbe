"""Features as a decider reads them: by name, standardised, what is missing at the training mean."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from apportion.route.profile.profile import Floats, Profile

FARTHEST = 5.0  # spreads from the mean; beyond, a value is read as that far


@dataclass(frozen=True, slots=True)
class Reader:
    """The f features that are read, in this order.

    Attributes:
        mean, spread: [f] of the training questions; the spread is above 0.
    """

    names: tuple[str, ...]
    mean: Float[ndarray, " f"]
    spread: Float[ndarray, " f"]

    @classmethod
    def of(cls, profile: Profile, names: tuple[str, ...]) -> "Reader":
        """A reader of some of a profile's features; one that does not vary is read as 0 always."""
        mean, spread = mean_and_spread(profile.keep_features(names).features)
        return cls(names, mean, np.where(spread > 0, spread, 1.0))

    def standardise(self, features: Float[ndarray, "n f"]) -> Float[ndarray, "n f"]:
        """Spreads from the mean, at most five; what is missing becomes the mean (0)."""
        return np.asarray(np.nan_to_num((features - self.mean) / self.spread).clip(-FARTHEST, FARTHEST))

    def read(self, profile: Profile) -> Float[ndarray, "n f"]:
        """The standardised features of a profile's questions; a feature it lacks is missing for all."""
        return self.standardise(self.take(profile.features, profile.feature_names))

    def take(self, features: Float[ndarray, "n g"], names: tuple[str, ...]) -> Float[ndarray, "n f"]:
        """The columns that are read, out of others; NaN where there is no such column."""
        place = {name: i for i, name in enumerate(names)}
        absent = np.full(len(features), np.nan)
        columns = [features[:, place[name]] if name in place else absent for name in self.names]
        return np.stack(columns, axis=1) if columns else np.zeros((len(features), 0))

    def row(self, features: Mapping[str, float | None]) -> tuple[list[float], tuple[str, ...]]:
        """One question's standardised features, and the names of those that were missing: the fast way."""
        values, missing = [], []
        for name, mean, spread in zip(self.names, self.mean.tolist(), self.spread.tolist(), strict=True):
            value = features.get(name)
            if value is None or not math.isfinite(value):
                missing.append(name)
                value = mean
            values.append(min(FARTHEST, max(-FARTHEST, (value - mean) / spread)))
        return values, tuple(missing)


def mean_and_spread(features: Float[ndarray, "n f"]) -> tuple[Floats, Floats]:
    """[f] mean and standard deviation of the values that are there; 0 where there is none."""
    known = np.isfinite(features)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, features, 0.0).sum(axis=0) / count
    squares = np.where(known, (features - mean) ** 2, 0.0).sum(axis=0) / count
    return mean, np.sqrt(squares)
