"""Command of the demonstration: both halves on the model that ships with the package."""

from pathlib import Path
from typing import Annotated

import typer

from apportion.cli.base import app, emit
from apportion.cli.options import AsJson


@app.command(epilog="Example: apportion demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="New folder for everything that is made.")] = Path("out/demo"),
    json: AsJson = False,
) -> None:
    """Quantize the shipped model, and route questions with it: two tables and two plots in a few minutes."""
    import torch
    from transformers.utils import logging

    from apportion.core.artifact import plain
    from apportion.demo.show import show, text_of

    torch.set_num_threads(1)  # so small a model gains nothing from more, and on a busy machine they wait on each other
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    shown = show(out)
    emit(plain(shown), as_json=json, text=text_of(shown))
