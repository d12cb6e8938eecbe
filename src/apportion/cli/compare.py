"""Command of the comparison: every method on one model."""

from pathlib import Path
from typing import Annotated

import typer

from apportion.cli import bits
from apportion.cli.base import app, emit
from apportion.core.errors import InputError


def parse_bits(text: str) -> tuple[float, ...]:
    """Budgets as `2.25,2.5,3`."""
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError as error:
        raise InputError(f"--avg-bits {text}: expected numbers with commas, e.g. 2.25,2.5,3") from error


@app.command(rich_help_panel="Bits for layers")
def compare(
    model: bits.ModelArg,
    out: bits.Out,
    text: Annotated[Path, typer.Option(help="Held-out text: .txt as one string, .jsonl with a 'text' field.")],
    calibration: bits.Calibration = None,
    avg_bits: Annotated[str, typer.Option(help="Budgets, with commas.")] = "2.25,2.5,2.75,3,3.25,3.5",
    methods: Annotated[str | None, typer.Option(help="Methods, with commas; all but optimum if left out.")] = None,
    widths: bits.Widths = "2,4",
    players: bits.Players = "blocks",
    untie: bits.Untie = False,
    rounding: bits.RoundingName = "nearest",
    apply_rounding: Annotated[
        str | None, typer.Option(help="Rounding that plans are evaluated with; --rounding if left out.")
    ] = None,
    group_size: bits.GroupSize = 64,
    windows: bits.Windows = 32,
    window_tokens: bits.WindowTokens = 512,
    text_windows: Annotated[int, typer.Option(help="First windows of the held-out text.")] = 128,
    permutations: bits.Permutations = 100,
    alpha: bits.Alpha = 0.5,
    curve: Annotated[bool, typer.Option(help="Also evaluate the 15 evenly spaced budgets of the excess.")] = True,
    seed: bits.Seed = 0,
    device: bits.Device = "auto",
    dtype: bits.Dtype = "auto",
    trust_remote_code: bits.Remote = False,
    resume: bits.Resume = False,
    as_json: bits.AsJson = False,
) -> None:
    """Compare every method of choosing widths on one model, over one grid of budgets.

    Example: apportion compare ./model --text wikitext2-test.txt --calibration c4.jsonl --out ./comparison
    """
    from apportion.bits.compare import Comparison
    from apportion.bits.compare import compare as run
    from apportion.bits.compare_page import table
    from apportion.bits.methods import METHODS
    from apportion.bits.sample import Sampling

    sampling = Sampling(
        bits.parse_widths(widths), players, untie, rounding, group_size, calibration, windows, window_tokens,
        permutations, False, seed,
    )  # fmt: skip
    names = [name.strip() for name in methods.split(",")] if methods else [m for m in METHODS if m != "optimum"]
    ask = Comparison(
        text, tuple(names), parse_bits(avg_bits), text_windows, curve, apply_rounding, alpha, device, dtype,
        trust_remote_code,
    )  # fmt: skip
    result = run(model, out, ask, sampling, resume=resume)
    emit(result, as_json=as_json, text="\n".join([*table(result), f"{out}/table.md"]))
