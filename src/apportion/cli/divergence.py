"""Command of the divergence: quantized models beside the one they were made from."""

from pathlib import Path
from typing import Annotated

import typer

from apportion.cli.base import app, emit
from apportion.cli.options import AsJson, Bos, PlaceOptions, Seed, WindowTokens, parse_bos, with_groups


@app.command(rich_help_panel="Bits for layers")
@with_groups
def divergence(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="Full precision: a folder or a GGUF file.")],
    candidates: Annotated[list[str], typer.Argument(metavar="CANDIDATE...", help="Folders or GGUF files to compare.")],
    *,
    text: Annotated[Path | None, typer.Option(help="Held-out text: .txt, or .jsonl with a 'text' field.")] = None,
    chat: Annotated[Path | None, typer.Option(help="Conversations: .jsonl with 'messages' on each line.")] = None,
    window_tokens: WindowTokens = 512,
    windows: Annotated[int | None, typer.Option(help="Only the first so many windows of each text.")] = None,
    bos: Bos = "auto",
    seed: Seed = 0,
    place: PlaceOptions,
    out: Annotated[Path | None, typer.Option(help="Folder for divergence.json, a table and plots.")] = None,
    as_json: AsJson = False,
) -> None:
    """How far quantized models predict from the original: KL, same top token, change of the right token, perplexity.

    Example: apportion divergence ./Llama-3.2-3B ./llama-3bit q4_k_m.gguf --text wikitext2-test.txt --chat chats.jsonl
    """
    from apportion.bits.divergence.page import tables
    from apportion.bits.divergence.run import Measurement, compare

    ask = Measurement(
        text=text,
        chat=chat,
        window_tokens=window_tokens,
        windows=windows,
        bos=parse_bos(bos),
        device=place.device,
        dtype=place.dtype,
        trust_remote_code=place.trust_remote_code,
        seed=seed,
    )
    result = compare(reference, candidates, ask, out)
    emit(result, as_json=as_json, text="\n".join(tables(result)).rstrip())
