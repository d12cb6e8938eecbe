"""checkpoint + text -> Samples: set up the game, ask it for SPQE's coalitions, save what came back."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from apportion.bits.game.bank import (
    player_parameters,
)
from apportion.bits.game.game import Counts, MeasuredGame, full_precision_nll
from apportion.bits.game.players import uniform
from apportion.bits.game.samples import SAMPLES, VALUES, WINDOWS, Samples, load_samples, only, save_samples
from apportion.bits.game.spqe import asked_by, coalitions, draw_permutations
from apportion.bits.quantizer import Table
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json, claim_folder, require_same
from apportion.core.log import AppendLog, read_log
from apportion.core.output import output_folder
from apportion.models.text import (
    Windows,
    calibrate,
    load_calibration,
    sample_calibration,
    save_calibration,
)

STOP_BATCH = 5  # permutations between two looks of a sampling that may stop by itself


def calibration_for(table: Table, folder: Path) -> Windows:
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
    with output_folder(folder, "samples", resume=resume, reads=[table.staged.source] if table.staged.source else []):
        claim_folder(folder, resume=True, kind="samples")
        return samples_of(table, folder, resume=resume, stop=stop)


def samples_of(table: Table, folder: Path, *, resume: bool, stop: Callable[[Samples], bool] | None) -> Samples:
    """The work of `take_samples`, in a folder that is held for it."""
    began = time.monotonic()
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
        "resumed_evaluations": len(game.resumed),
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
