"""Game -> Samples: ask for SPQE's coalitions, save what came back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from apportion.bits.game.game import Counts, MeasuredGame, full_precision_nll
from apportion.bits.game.players import Assignment
from apportion.bits.game.samples import SAMPLES, Samples, load_samples, only, save_samples
from apportion.bits.game.spqe import asked_by, coalitions
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json

STOP_BATCH = 5  # permutations between two looks of a sampling that may stop by itself
Orders = Int[NDArray[np.int64], "permutations players"]
Stop = Callable[[Samples], bool]


def sample(game: MeasuredGame, folder: Path, orders: Orders, *, stop: Stop | None = None) -> Samples:
    """Measure the coalitions of SPQE and save them; a finished folder is read, not measured again.

    Args:
        game: on the text that values are to be measured on, with its log open in the folder.
        folder: where the game's log and windows lie; `samples.json` is written there last.
        orders: [permutations, players] permutations drawn by `spqe.draw_permutations`; none for methods that choose
            their own assignments, which then begin with all players at the highest and all at the lowest width.
        stop: asked after every few permutations whether they are enough; all are used if None.

    Returns:
        The samples; values of the folder's log that these permutations did not ask for are left out.

    Raises:
        NumericError: a loss is not finite. ArtifactError, ArtifactMismatchError: the folder's files.

    Cost: `players` coalitions a permutation, fewer where prefixes or coalitions are shared.
    """
    began = time.monotonic()
    if (folder / SAMPLES).exists() and (saved := load_samples(folder)) and answers(saved, orders, stop):
        return saved
    nll_fp = full_precision_nll(game.bank.staged, game.text, game.teacher())
    ends = [game.costs.uniform(-1), game.costs.uniform(0)]
    game.values(ends[:1] if len(orders) else ends)
    samples = Samples(
        costs=game.costs,
        windows=game.text,
        orders=orders[:0],
        values=only(game.known, asked_by(orders[:0], 0, game.costs.high)),
        nll_fp=nll_fp,
        settings=game.settings,
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


def answers(saved: Samples, orders: Orders, stop: Stop | None) -> bool:
    """Whether a finished folder holds what is asked for; others may have stopped early."""
    same = np.array_equal(saved.orders, orders[: len(saved.orders)]) and saved.counts["asked"] == len(orders)
    return same and (stop is not None or len(saved.orders) == len(orders))


def play(samples: Samples, game: MeasuredGame, orders: Orders, stop: Stop | None) -> Samples:
    """Measure all permutations, or batch after batch until they are enough."""
    high = samples.costs.high
    step = len(orders) if stop is None else STOP_BATCH
    for count in range(step, len(orders) + step, step) if len(orders) else ():
        taken = orders[:count]
        fresh = coalitions(orders[count - step : count], 0, high)
        game.values(fresh[1:])  # the first of them, all at the highest width, is known
        # a resumed log may already know later ones
        samples = replace(samples, orders=taken, values=only(game.known, asked_by(taken, 0, high)))
        if stop is not None and stop(samples):
            break
    return samples


def measure(game: MeasuredGame, samples: Samples, assignments: Sequence[Assignment]) -> Samples:
    """Measure further assignments on the samples' own text, appending them to the same log."""
    before = replace(game.counts)
    earlier = len((set(assignments) & game.resumed) - samples.values.keys())
    game.values(assignments)
    return replace(samples, values=dict(game.known), counts=added(samples.counts, since(game.counts, before), earlier))


def since(now: Counts, before: Counts) -> Counts:
    """What was counted between two moments."""
    return Counts(
        now.evaluations - before.evaluations,
        now.block_forwards - before.block_forwards,
        now.naive_block_forwards - before.naive_block_forwards,
    )


def added(counts: Json, more: Counts, resumed: int) -> Json:
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
