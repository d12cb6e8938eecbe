"""checkpoint + text -> Samples: set up the game, ask it for SPQE's coalitions, save what came back."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from apportion.bits.budget import CostTable
from apportion.bits.calibration import (
    Calibration,
    calibrate,
    count_windows,
    load_calibration,
    sample_calibration,
    save_calibration,
)
from apportion.bits.checkpoint import fixed_bytes, widths_by_path
from apportion.bits.formats import require_bits, require_groups
from apportion.bits.game import Counts, MeasuredGame, full_precision_nll
from apportion.bits.model import StagedModel
from apportion.bits.players import Assignment, Player, players_of, require_kind, uniform
from apportion.bits.rounding import ROUNDINGS, Rounded, Rounding, rounding_named
from apportion.bits.rounding.grid import FORMAT as GRID
from apportion.bits.samples import SAMPLES, VALUES, WINDOWS, Samples, load_samples, only, save_samples
from apportion.bits.spqe import asked_by, coalitions, draw_permutations
from apportion.bits.tuning import require_tunable, tune
from apportion.bits.weights import (
    WeightBank,
    bank_of,
    linear_columns,
    player_bytes,
    player_parameters,
    round_all,
    round_plan,
)
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json, claim_folder, require_same
from apportion.core.errors import InputError, require_all
from apportion.core.log import AppendLog, read_log
from apportion.core.seeds import derived_seed

STOP_BATCH = 5  # permutations between two looks of a sampling that may stop by itself


@dataclass(frozen=True, slots=True)
class Sampling:
    """Everything that the measured values depend on, besides the model.

    Attributes:
        widths: bits that players may have, rising; SPQE demotes from the last to the first.
        players: `blocks` or `linears`; untie: leave q/k/v and gate/up free of each other.
        calibration: a text file; None samples the windows from the model itself.
        windows, window_tokens: how much calibration text.
        permutations: the paper's M. antithetic: follow each permutation by its reverse.
        rounding_windows: how much of the same text roundings with moments (gptq) see, at most.
        apply_rounding: the rounding that plans are written with, if not the one they are sampled with; what a
            width costs is counted in its format.
        tune: steps by which a written plan's scales are tuned, see `tuning`; tune_windows: on how much of the text,
            at most, and never on more than three quarters of it.
    """

    widths: tuple[int, ...] = (2, 4)
    players: str = "blocks"
    untie: bool = False
    rounding: str = "nearest"
    group_size: int = 64
    calibration: Path | None = None
    windows: int = 32
    window_tokens: int = 512
    permutations: int = 100
    antithetic: bool = False
    seed: int = 0
    rounding_windows: int = 128
    apply_rounding: str | None = None
    tune: int = 0
    tune_windows: int = 1024

    @property
    def applied(self) -> str:
        """The rounding that the plan is written with."""
        return self.apply_rounding or self.rounding

    def check(self) -> None:
        """Refuse what can be refused without the model, all at once.

        Raises:
            InputError: with every offending value. MissingExtraError: the rounding's package is missing.
        """
        rounding, applied = rounding_named(self.rounding), applied_named(self.applied)
        require_all(
            lambda: require_bits(self.widths, rounding.bits, rounding.name),
            lambda: require_applied(self.widths, self.rounding, self.applied),
            lambda: require_kind(self.players),
            lambda: at_least("--rounding-windows", self.rounding_windows, 1),
            lambda: at_least("--tune-windows", self.tune_windows, 2),
            lambda: at_least("--windows", self.windows, 1),
            lambda: at_least("--window-tokens", self.window_tokens, 2),
            lambda: at_least("--permutations", self.permutations, 0),
            lambda: at_least("--group-size", self.group_size, 1),
            lambda: at_least("--seed", self.seed, 0),
            lambda: require_text(self.calibration),
            lambda: require_tunable(applied.name, applied.format, self.tune),
        )


def at_least(name: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise InputError(f"{name} {value}: expected at least {smallest}")


def require_applied(widths: tuple[int, ...], rounding: str, applied: str) -> None:
    if applied != rounding:
        require_bits(widths, applied_named(applied).bits, applied)


def applied_named(name: str) -> Rounding:
    """`rounding_named` for the rounding that plans are written with.

    Raises:
        InputError: unknown name. MissingExtraError: its package is not installed.
    """
    if name not in ROUNDINGS:
        raise InputError(f"--apply-rounding {name}: unknown", f"choose from {', '.join(ROUNDINGS)}")
    return rounding_named(name)


def require_tied(sampling: Sampling) -> None:
    """Refuse untied linears where plans are written in the format of servers, which fuse q/k/v and gate/up.

    Raises:
        InputError: with formats that can.
    """
    if sampling.untie and sampling.applied in ROUNDINGS and rounding_named(sampling.applied).format == GRID:
        raise InputError(
            f"--untie: {sampling.applied} writes {GRID}, and servers that load it (vLLM) fuse q/k/v and gate/up, which "
            "then need equal widths",
            "leave --untie out, or write with --rounding or --apply-rounding quanto or hqq (read by apportion.load)",
        )


def require_text(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise InputError(f"--calibration {path}: no such file", "give a .txt or .jsonl file, or leave it out")


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
    _rounded: dict[tuple[str, int], Rounded] = field(default_factory=dict)
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

    def rounded(self) -> Mapping[tuple[str, int], Rounded]:
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
        sampling, length = self.sampling, self.sampling.window_tokens
        if sampling.calibration is None:
            return self.text
        most = 3 * count_windows(sampling.calibration, self.tokenizer, length) // 4
        count = max(2, min(sampling.tune_windows, most))
        seed = derived_seed(sampling.seed, "tuning")
        return calibrate(
            sampling.calibration, self.tokenizer, windows=count, window_tokens=length, seed=seed, fewer=True
        ).windows

    @property
    def rewrites(self) -> bool:
        """Whether a plan is written with other weights than it was sampled with."""
        other = self.applied.name != self.rounding.name
        return other or self.rounding.needs_hessian or self.sampling.tune > 0

    def written(self, assignment: Assignment) -> Mapping[str, Rounded]:
        """Each linear's weight as a plan is written.

        By the applied rounding, in sequence where it sees moments, and tuned where that is asked for.
        """
        widths = widths_by_path(self.staged, self.players, assignment)
        if self.applied.name == self.rounding.name and not self.rounding.needs_hessian:
            kept = self.rounded()
            rounded: Mapping[str, Rounded] = {path: kept[path, bits] for path, bits in widths.items()}
        else:
            text = self.text if self.applied.needs_hessian else None
            rounded = round_plan(self.staged, self.applied, widths, self.sampling.group_size, text)
        return self.tuned(rounded, self.sampling.tune) if self.sampling.tune else rounded

    def tuned(self, rounded: Mapping[str, Rounded], steps: int) -> Mapping[str, Rounded]:
        """Written weights with their scales tuned."""
        return tune(self.staged, rounded, self.tuning_text, steps, self.sampling.seed).rounded

    def bank(self) -> WeightBank:
        """The rounded weights in the compute dtype, decoded once."""
        if self._bank is None:
            self._bank = bank_of(self.staged, self.players, self.rounded())
        return self._bank

    def settings(self, calibration: Calibration) -> Json:
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


def rounding_text(staged: StagedModel, tokenizer: Any, sampling: Sampling) -> Tensor:
    """Windows for a rounding that needs moments: of the calibration text, or sampled from the model itself."""
    length, seed, count = sampling.window_tokens, sampling.seed, sampling.rounding_windows
    if sampling.calibration is None:
        count = min(count, sampling.windows)
        return sample_calibration(staged, tokenizer, windows=count, window_tokens=length, seed=seed).windows
    return calibrate(
        sampling.calibration, tokenizer, windows=count, window_tokens=length, seed=seed, fewer=True
    ).windows


def calibration_for(table: Table, folder: Path) -> Calibration:
    """The windows asked for; windows sampled by the model itself are sampled once and kept.

    Kept windows without values belong to a run that ended before it measured, perhaps of another text or model: they
    are made anew, so that what is measured later is measured on the text that the values' log names.

    Raises:
        ArtifactMismatchError: kept are windows of another number or length.
    """
    sampling, saved, log = table.sampling, folder / WINDOWS, folder / VALUES
    count, length, seed = sampling.windows, sampling.window_tokens, sampling.seed
    keep = saved.exists() and log.exists() and bool(read_log(log)[0])
    if sampling.calibration is not None:
        found = calibrate(sampling.calibration, table.tokenizer, windows=count, window_tokens=length, seed=seed)
    elif keep:
        found = load_calibration(saved)
        kept, asked = ({"windows": n, "window_tokens": t} for n, t in (found.windows.shape, (count, length)))
        require_same(kept, asked, saved)
    else:
        found = sample_calibration(table.staged, table.tokenizer, windows=count, window_tokens=length, seed=seed)
    if not keep:
        save_calibration(found, saved)
    return found


def orders_of(table: Table) -> Int[NDArray[np.int64], "permutations players"]:
    """The permutations asked for; none at all for methods that choose their own assignments."""
    sampling, players = table.sampling, len(table.players)
    if sampling.permutations == 0:
        return np.zeros((0, players), dtype=np.int64)
    return draw_permutations(players, sampling.permutations, sampling.seed, antithetic=sampling.antithetic)


def take_samples(
    table: Table, folder: Path, *, resume: bool = False, stop: Callable[[Samples], bool] | None = None
) -> Samples:
    """Measure the coalitions of SPQE and save them; a finished folder is read, not measured again.

    Args:
        folder: where values are appended as they come, so that a kill loses only what was in flight.
        resume: continue what is there.
        stop: asked after every few permutations whether they are enough; all are used if None.

    Raises:
        InputError, ArtifactMismatchError, NumericError, as their steps say.
    """
    began = time.monotonic()
    claim_folder(folder, resume=resume)
    calibration = calibration_for(table, folder)
    settings = table.settings(calibration)
    table.staged.verify(calibration.windows)
    sampling = table.sampling
    orders = orders_of(table)
    with AppendLog(folder / VALUES, settings, resume=resume) as log:
        if (folder / SAMPLES).exists():
            saved = load_samples(folder)
            same = np.array_equal(saved.orders, orders[: len(saved.orders)]) and saved.counts["asked"] == len(orders)
            if same and (stop is not None or len(saved.orders) == len(orders)):  # others may have stopped early
                return saved
        nll_fp = full_precision_nll(table.staged, calibration)
        game = MeasuredGame(table.bank(), calibration, log)
        ends = [uniform(table.players, sampling.widths[-1]), uniform(table.players, sampling.widths[0])]
        game.values([ends[0]] if len(orders) else ends)
        samples = Samples(
            players=table.players,
            widths=sampling.widths,
            player_bytes=table.costs.player_bytes,
            player_parameters=np.asarray([player_parameters(table.staged, p) for p in table.players], dtype=np.int64),
            fixed_bytes=table.costs.fixed_bytes,
            orders=orders[:0],
            values=only(game.known, asked_by(orders[:0], sampling.widths[0], sampling.widths[-1])),
            nll_fp=nll_fp,
            settings=settings,
            counts={"asked": len(orders)},
        )
        samples = play(samples, game, orders, stop)
    counts = {
        "asked": len(orders),
        "permutations": len(samples.orders),
        "evaluations": game.counts.evaluations,
        "resumed_evaluations": game.resumed,
        "block_forwards": game.counts.block_forwards,
        "naive_block_forwards": game.counts.naive_block_forwards,
        "seconds": time.monotonic() - began,
    }
    samples = replace(samples, counts=counts)
    save_samples(samples, folder)
    return samples


def play(
    samples: Samples,
    game: MeasuredGame,
    orders: Int[NDArray[np.int64], "permutations players"],
    stop: Callable[[Samples], bool] | None,
) -> Samples:
    """Measure all permutations, or batch after batch until they are enough."""
    step = len(orders) if stop is None else STOP_BATCH
    for count in range(step, len(orders) + step, step) if len(orders) else ():
        taken = orders[:count]
        fresh = coalitions(orders[count - step : count], samples.low, samples.high)
        game.values(fresh[1:])  # the first of them, all at the highest width, is known
        asked = asked_by(taken, samples.low, samples.high)  # a resumed log may already know later ones
        samples = replace(samples, orders=taken, values=only(game.known, asked))
        if stop is not None and stop(samples):
            break
    return samples


def measure(table: Table, samples: Samples, folder: Path, assignments: list[tuple[int, ...]]) -> Samples:
    """Measure further assignments on the samples' own text, appending them to the same log."""
    calibration = load_calibration(folder / WINDOWS)
    with AppendLog(folder / VALUES, samples.settings, resume=True) as log:
        game = MeasuredGame(table.bank(), calibration, log)
        earlier = len((set(assignments) & game.known.keys()) - samples.values.keys())
        game.values(assignments)
    return replace(samples, values=game.known, counts=added(samples.counts, game.counts, resumed=earlier))


def added(counts: Json, more: Counts, *, resumed: int = 0) -> Json:
    """Counts of the samples and of further measurements together.

    Args:
        resumed: how many of the values asked for, beyond the samples', an earlier run had left in the log.
    """
    return {
        **counts,
        "evaluations": counts["evaluations"] + more.evaluations,
        "resumed_evaluations": counts["resumed_evaluations"] + resumed,
        "block_forwards": counts["block_forwards"] + more.block_forwards,
        "naive_block_forwards": counts["naive_block_forwards"] + more.naive_block_forwards,
    }
