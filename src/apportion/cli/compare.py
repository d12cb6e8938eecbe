"""Command of the comparison: every method on one model."""

from typing import Annotated

import typer

from apportion.cli.base import app, emit
from apportion.cli.options import (
    Alpha,
    AsJson,
    ModelArg,
    Out,
    PlaceOptions,
    RecipeOptions,
    Resume,
    Text,
    with_groups,
)
from apportion.core.errors import InputError


def parse_bits(text: str) -> tuple[float, ...]:
    """Budgets as `2.25,2.5,3`."""
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError as error:
        raise InputError(f"--avg-bits {text}: expected numbers with commas, e.g. 2.25,2.5,3") from error


@app.command(rich_help_panel="Bits for layers")
@with_groups
def compare(
    model: ModelArg,
    out: Out,
    text: Text,
    *,
    avg_bits: Annotated[str, typer.Option(help="Budgets, with commas.")] = "2.25,2.5,2.75,3,3.25,3.5",
    methods: Annotated[str | None, typer.Option(help="Methods, with commas; all but optimum if left out.")] = None,
    apply_rounding: Annotated[
        str | None, typer.Option(help="Rounding that plans are evaluated with; --rounding if left out.")
    ] = None,
    text_windows: Annotated[int, typer.Option(help="First windows of the held-out text.")] = 128,
    alpha: Alpha = 0.5,
    curve: Annotated[bool, typer.Option(help="Also evaluate the 15 evenly spaced budgets of the excess.")] = True,
    recipe: RecipeOptions,
    place: PlaceOptions,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Compare every method of choosing widths on one model, over one grid of budgets.

    Example: apportion compare ./model --text wikitext2-test.txt --calibration c4.jsonl --out ./comparison
    """
    from apportion.bits.compare.compare import CompareRequest
    from apportion.bits.compare.compare import compare as run
    from apportion.bits.compare.methods import DEFAULT
    from apportion.bits.compare.page import table

    ask = CompareRequest(
        text=text,
        methods=DEFAULT if methods is None else tuple(name.strip() for name in methods.split(",")),
        avg_bits=parse_bits(avg_bits),
        text_windows=text_windows,
        curve=curve,
        alpha=alpha,
        device=place.device,
        dtype=place.dtype,
        trust_remote_code=place.trust_remote_code,
    )
    result = run(model, out, ask, recipe.recipe(apply_rounding=apply_rounding), resume=resume)
    emit(result, as_json=as_json, text="\n".join([*table(result), f"{out}/table.md"]))
