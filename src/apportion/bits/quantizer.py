"""A model set up to be played, and its weights: rounded once per width, and as a plan is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from apportion.bits.checkpoint import fixed_bytes, widths_by_path
from apportion.bits.game.bank import WeightBank, bank_of, linear_columns, player_bytes, round_all, round_plan
from apportion.bits.game.players import Assignment, Player, players_of
from apportion.bits.plan.budget import CostTable
from apportion.bits.recipe import Sampling
from apportion.bits.rounding import Rounding, rounding_named
from apportion.bits.rounding.tuning import Lesson, lesson_of, tune
from apportion.core.artifact import Json
from apportion.core.seeds import derived_seed
from apportion.formats.packed import Packed
from apportion.formats.width import require_groups
from apportion.models.staged import StagedModel
from apportion.models.text import Windows, calibrate, choose, sample_calibration, windows_of


@dataclass(frozen=True)
class PlanWeights:
    """A plan's weights as they are written.

    Attributes:
        rounded: by module path. tuned: what tuning did, None where it was not asked for: `asked` and `steps` (after
            how many the scales were best; 0: none was better than untuned), `before` and `after` (cross-entropy to
            full precision on windows kept aside, nats per token).
    """

    rounded: Mapping[str, Packed]
    tuned: Json | None = None


@dataclass
class Table:
    """A model set up to be played: players, costs, and rounded weights as they are needed."""

    staged: StagedModel
    tokenizer: Any
    sampling: Sampling
    rounding: Rounding = field(init=False)
    applied: Rounding = field(init=False)
    players: tuple[Player, ...] = field(init=False)
    costs: CostTable = field(init=False)
    _rounded: dict[tuple[str, int], Packed] = field(default_factory=dict)
    _bank: WeightBank | None = None

    def __post_init__(self) -> None:
        self.sampling.check()
        staged, sampling = self.staged, self.sampling
        self.rounding, self.applied = rounding_named(sampling.rounding), rounding_named(sampling.applied)
        require_groups(linear_columns(staged), sampling.group_size)
        self.players = players_of(staged.layout, sampling.players, untie=sampling.untie)
        table = [
            [player_bytes(staged, player, self.applied, bits, sampling.group_size) for bits in sampling.widths]
            for player in self.players
        ]
        fixed = fixed_bytes(staged, self.players, self.applied, sampling.group_size)
        self.costs = CostTable(sampling.widths, np.asarray(table, dtype=np.int64), fixed)

    def rounded(self) -> Mapping[tuple[str, int], Packed]:
        """Every linear at every width, rounded once."""
        if not self._rounded:
            windows = self.text if self.rounding.needs_hessian else None
            self._rounded = round_all(
                self.staged, self.rounding, self.sampling.widths, self.sampling.group_size, windows
            )
        return self._rounded

    @cached_property
    def text(self) -> Tensor:
        """The windows that roundings with moments see: read, or sampled, once for all plans."""
        return rounding_text(self.staged, self.tokenizer, self.sampling)

    @cached_property
    def tuning_text(self) -> Tensor:
        """The windows that scales are tuned on."""
        return tuning_text(self.tokenizer, self.sampling, lambda: self.text)

    @cached_property
    def lesson(self) -> Lesson:
        """What scales are tuned on, with full precision's answers, once for all plans."""
        return lesson_of(self.staged, self.tuning_text, self.sampling.tune, self.sampling.seed)

    @property
    def rewrites(self) -> bool:
        """Whether a plan is written with other weights than it was sampled with."""
        other = self.applied.name != self.rounding.name
        return other or self.rounding.needs_hessian or self.sampling.tune > 0

    def written(self, assignment: Assignment) -> PlanWeights:
        """Each linear's weight as a plan is written.

        By the applied rounding, in sequence where it sees moments, and tuned where that is asked for.
        """
        widths = widths_by_path(self.staged, self.players, assignment)
        if self.applied.name == self.rounding.name and not self.rounding.needs_hessian:
            kept = self.rounded()
            rounded: Mapping[str, Packed] = {path: kept[path, bits] for path, bits in widths.items()}
        else:
            text = self.text if self.applied.needs_hessian else None
            rounded = round_plan(self.staged, self.applied, widths, self.sampling.group_size, text)
        return tuned_weights(self.staged, rounded, self.lesson) if self.sampling.tune else PlanWeights(rounded)

    def bank(self) -> WeightBank:
        """The rounded weights in the compute dtype, decoded once."""
        if self._bank is None:
            self._bank = bank_of(self.staged, self.players, self.rounded())
        return self._bank

    def settings(self, calibration: Windows) -> Json:
        """What the values depend on, by digest and by name."""
        sampling, placement = self.sampling, self.staged.placement
        return {
            "model": self.staged.digest,
            "calibration": calibration.digest,
            "calibration_source": Path(calibration.source).name,
            "widths": list(sampling.widths),
            "players": sampling.players,
            "untied": sampling.untie,
            "rounding": sampling.rounding,
            "apply_rounding": sampling.applied,
            "group_size": sampling.group_size,
            "dtype": placement.dtype,
            "device": placement.device.split(":")[0],
            **({"seed": sampling.seed} if sampling.calibration is None else {}),  # kept windows are not sampled again
            **({"rounding_windows": sampling.rounding_windows} if self.rounding.needs_hessian else {}),
        }


def tuning_text(tokenizer: Any, sampling: Sampling, own: Callable[[], Tensor]) -> Tensor:
    """At most `tune_windows` windows, and at most three quarters of the text: finalists are judged on the rest.

    Args:
        own: what the model samples itself, for runs without a text.
    """
    if sampling.calibration is None:
        return own()[: sampling.tune_windows]
    available = windows_of(sampling.calibration, tokenizer, sampling.window_tokens)
    most = max(2, min(sampling.tune_windows, 3 * len(available) // 4))
    return choose(available, min(most, len(available)), derived_seed(sampling.seed, "tuning"))


def tuned_weights(staged: StagedModel, rounded: Mapping[str, Packed], lesson: Lesson) -> PlanWeights:
    """A plan's weights after tuning, and what it did."""
    found = tune(staged, rounded, lesson)
    return PlanWeights(
        found.rounded, {"asked": lesson.steps, "steps": found.steps, "before": found.before, "after": found.after}
    )


def rounding_text(staged: StagedModel, tokenizer: Any, sampling: Sampling) -> Tensor:
    """Windows for a rounding that needs moments: of the calibration text, or sampled from the model itself."""
    length, seed, count = sampling.window_tokens, sampling.seed, sampling.rounding_windows
    if sampling.calibration is None:
        count = min(count, sampling.windows)
        return sample_calibration(staged, tokenizer, windows=count, window_tokens=length, seed=seed).windows
    return calibrate(
        sampling.calibration, tokenizer, windows=count, window_tokens=length, seed=seed, fewer=True
    ).windows
