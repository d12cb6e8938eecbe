"""Shapley marginals of layer pruning beside those of SPQE: a demoted block is skipped instead of rounded.

The paper's argument for SPQE: pruning breaks the model after a few steps, so its marginals are large, of high
variance, and say little about quantization.
"""

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from apportion.bits.game import Assignment, MeasuredGame, WeightBank
from apportion.bits.game.engine import PlainEngine
from apportion.bits.game.spqe import coalitions, draw_permutations, marginals
from apportion.bits.quantize import open_model
from apportion.bits.recipe import Recipe
from apportion.core.arrays import NDArray
from apportion.models.text import Windows

LOW, HIGH = 0, 1
SKIPPED = -1  # in place of the index of a width: the block is left out


class SkippingEngine(PlainEngine):
    """Passes a block's input on where the block is skipped."""

    def block(self, block: int, columns: Assignment, hidden: Tensor) -> Tensor:
        return hidden if columns == (SKIPPED,) else super().block(block, columns, hidden)


def skipping_game(bank: WeightBank, windows: Windows) -> MeasuredGame:
    """The game in which players have the high width or are left out."""
    game = MeasuredGame(bank, windows)
    bank.choose_cache(windows.windows.numel())
    ids = windows.windows.to(bank.staged.placement.device)
    game._engine = SkippingEngine(bank, bank.staged.embed(ids), ids)
    return game


def pruning(asked: argparse.Namespace) -> list[dict[str, object]]:
    """Spread and divergence of both games along the same permutations."""
    recipe = Recipe(
        rounding=asked.rounding, calibration=Path(asked.text), windows=asked.windows,
        window_tokens=asked.window_tokens, permutations=asked.permutations,
    )  # fmt: skip
    quantizer = open_model(asked.input, recipe)
    windows, bank = quantizer.chosen(recipe.windows), quantizer.bank
    orders = draw_permutations(len(quantizer.costs.players), recipe.permutations, 0)
    games = {
        "SPQE (2 bit)": (MeasuredGame(bank, windows), LOW),
        "pruning (skipped)": (skipping_game(bank, windows), SKIPPED),
    }
    return [row(name, game, orders, low) for name, (game, low) in games.items()]


def row(name: str, game: MeasuredGame, orders: NDArray[np.int64], low: int) -> dict[str, object]:
    """One game's figures."""
    asked = coalitions(orders, low, HIGH)
    values = dict(zip(asked, game.values(asked).mean(1).tolist(), strict=True))
    found = marginals(orders, values, low, HIGH)
    phi = found.mean(0)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    halves = found[::2].mean(0), found[1::2].mean(0)
    vocabulary = int(game.bank.staged.model.config.get_text_config().vocab_size)
    return {
        "game": name,
        "permutations": len(orders),
        "mean NLL, none demoted": values[(HIGH,) * orders.shape[1]],
        "mean NLL, all demoted": values[(low,) * orders.shape[1]],
        "coalitions worse than guessing": float(np.mean([value > np.log(vocabulary) for value in values.values()])),
        "sd of a marginal": float(found.std(0, ddof=1).mean()),
        "standard error over size of phi": float(np.mean(error / np.abs(phi))),
        "negative marginals": float((found < 0).mean()),
        "rank correlation of two halves": float(np.corrcoef(ranks(halves[0]), ranks(halves[1]))[0, 1]),
    }


def ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(values).argsort().argsort()
