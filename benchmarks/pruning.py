"""Shapley marginals of layer pruning beside those of SPQE: a demoted block is skipped instead of rounded.

The paper's argument for SPQE: pruning breaks the model after a few steps, so its marginals are large, of high
variance, and say little about quantization.
"""

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from apportion.bits.game.bank import WeightBank
from apportion.bits.game.engine import PlainEngine
from apportion.bits.game.game import MeasuredGame
from apportion.bits.game.players import Assignment
from apportion.bits.game.spqe import coalitions, draw_permutations, marginals
from apportion.bits.quantizer import Table
from apportion.bits.recipe import Sampling
from apportion.core.arrays import NDArray
from apportion.core.device import place
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.text import Windows, calibrate

SKIPPED = 0  # the width of a block that is left out


class SkippingEngine(PlainEngine):
    """Passes a block's input on where the block is skipped."""

    def block(self, block: int, widths: Assignment, hidden: Tensor) -> Tensor:
        return hidden if widths == (SKIPPED,) else super().block(block, widths, hidden)


def skipping_game(bank: WeightBank, windows: Windows) -> MeasuredGame:
    """The game in which players have the high width or are left out."""
    game = MeasuredGame(bank, windows)
    ids = windows.windows.to(bank.staged.placement.device)
    game._engine = SkippingEngine(bank, bank.staged.embed(ids), ids)
    return game


def pruning(asked: argparse.Namespace) -> list[dict[str, object]]:
    """Spread and divergence of both games along the same permutations."""
    folder = asked.input
    sampling = Sampling(
        rounding=asked.rounding, calibration=Path(asked.text), windows=asked.windows,
        window_tokens=asked.window_tokens, permutations=asked.permutations,
    )  # fmt: skip
    table = Table(load_staged(folder, place("auto", "auto")), load_tokenizer(folder), sampling)
    windows = calibrate(
        sampling.calibration, table.tokenizer, windows=sampling.windows, window_tokens=sampling.window_tokens, seed=0
    )
    bank = table.bank()
    orders = draw_permutations(len(table.players), sampling.permutations, 0)
    games = {"SPQE (2 bit)": (MeasuredGame(bank, windows), 2), "pruning (skipped)": (skipping_game(bank, windows), 0)}
    return [row(name, game, orders, low) for name, (game, low) in games.items()]


def row(name: str, game: MeasuredGame, orders: NDArray[np.int64], low: int) -> dict[str, object]:
    """One game's figures."""
    asked = coalitions(orders, low, 4)
    values = dict(zip(asked, game.values(asked).mean(1).tolist(), strict=True))
    found = marginals(orders, values, low, 4)
    phi = found.mean(0)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    halves = found[::2].mean(0), found[1::2].mean(0)
    vocabulary = int(game.bank.staged.model.config.get_text_config().vocab_size)
    return {
        "game": name,
        "permutations": len(orders),
        "mean NLL, none demoted": values[(4,) * orders.shape[1]],
        "mean NLL, all demoted": values[(low,) * orders.shape[1]],
        "coalitions worse than guessing": float(np.mean([value > np.log(vocabulary) for value in values.values()])),
        "sd of a marginal": float(found.std(0, ddof=1).mean()),
        "standard error over size of phi": float(np.mean(error / np.abs(phi))),
        "negative marginals": float((found < 0).mean()),
        "rank correlation of two halves": float(np.corrcoef(ranks(halves[0]), ranks(halves[1]))[0, 1]),
    }


def ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(values).argsort().argsort()
