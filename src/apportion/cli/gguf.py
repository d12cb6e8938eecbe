"""Options of `quantize --format gguf`, and its call."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from apportion.cli.options import read_texts
from apportion.core.errors import InputError, at_least

FORMATS = ("checkpoint", "gguf")
PLAN_TOKENS = {"cpu": 2048, "cuda": 16384}
FILES_ALONE = ("--types", "--plans", "--plan-tokens", "--sequences", "--threads", "--reuse", "--allow-requantize")
BOTH = (
    *("--out", "--format", "--max-bytes", "--bits-per-weight", "--calibration", "--bos", "--window-tokens", "--seed"),
    *("--device", "--dtype", "--trust-remote-code", "--resume", "--json"),
)


def require_format(name: str) -> None:
    """Refuse a format that is not known.

    Raises:
        InputError: naming it.
    """
    if name not in FORMATS:
        raise InputError(f"--format {name}: unknown", f"choose from {', '.join(FORMATS)}")


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What only GGUF files have."""

    format: Annotated[
        str, typer.Option(help="checkpoint (a folder), or gguf: one file for llama.cpp, of --max-bytes in all.")
    ] = "checkpoint"
    bits_per_weight: Annotated[
        float | None, typer.Option(help="Budget of the whole file in bits per parameter, instead of --max-bytes.")
    ] = None
    types: Annotated[str | None, typer.Option(help="gguf: ggml types that matrices may have, with commas.")] = None
    plans: Annotated[int, typer.Option(help="gguf: plans that are measured.")] = 24
    plan_tokens: Annotated[
        int | None, typer.Option(help="gguf: tokens that a plan is measured on (2,048 on a CPU, 16,384 on a GPU).")
    ] = None
    sequences: Annotated[int, typer.Option(help="gguf: backward passes behind the costs of single types.")] = 32
    threads: Annotated[int | None, typer.Option(help="gguf: threads of ggml's quantizer; all cores if left out.")] = (
        None
    )
    reuse: Annotated[
        Path | None, typer.Option(help="gguf: evidence folder of another budget's run; nothing is measured again.")
    ] = None
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="gguf: take a source that is quantized already.")
    ] = False

    def is_gguf(self, given: Collection[str]) -> bool:
        """Whether a GGUF file is asked for.

        Args:
            given: options on the command line.

        Raises:
            InputError: unknown format, or options that it would leave aside.
        """
        require_format(self.format)
        if self.format != "gguf":
            if named := [name for name in given if name in FILES_ALONE]:
                raise InputError(f"{', '.join(named)}: only for GGUF files", "add --format gguf")
            return False
        if named := [name for name in given if name not in (*BOTH, *FILES_ALONE)]:
            raise InputError(
                f"{', '.join(named)}: only for checkpoints",
                "leave it out: in a GGUF file every matrix is a player, of --types, within --max-bytes or "
                "--bits-per-weight, chosen by measuring --plans",
            )
        if self.plan_tokens is not None:
            at_least("--plan-tokens", self.plan_tokens, 1)
        return True


def quantize_file(
    model: str, out: Path, file: FileOptions, max_bytes: str | None, recipe: Any, place: Any, *, resume: bool
) -> dict[str, Any]:
    """Run it."""
    from apportion.bits.gguf.ladders import DEFAULT_TYPES
    from apportion.bits.gguf.quantize import quantize_gguf
    from apportion.bits.gguf.recipe import FileRequest
    from apportion.bits.plan import parse_bytes
    from apportion.core.device import place as placed

    device = placed(place.device, place.dtype).device.split(":")[0]
    tokens = PLAN_TOKENS.get(device, 2048) if file.plan_tokens is None else file.plan_tokens
    types = DEFAULT_TYPES if file.types is None else tuple(part.strip().upper() for part in file.types.split(","))
    ask = FileRequest(
        max_bytes=None if max_bytes is None else parse_bytes(max_bytes),
        bits_per_weight=file.bits_per_weight,
        types=types,
        **read_texts(recipe.calibration, recipe.bos),
        windows=max(1, tokens // recipe.window_tokens),
        window_tokens=recipe.window_tokens,
        sequences=file.sequences,
        evaluations=file.plans,
        seed=recipe.seed,
        threads=file.threads,
        reuse=file.reuse,
        allow_requantize=file.allow_requantize,
        device=place.device,
        dtype=place.dtype,
        trust_remote_code=place.trust_remote_code,
    )
    return quantize_gguf(model, out, ask, resume=resume)


def file_text(result: dict[str, Any]) -> str:
    """What a person sees when the file is written."""
    from apportion.models.text import told

    found, seconds = result["divergence"], result["seconds"]
    whole = sum(seconds.values())
    types = ", ".join(f"{count} {kind}" for kind, count in sorted(result["types"].items(), key=lambda item: -item[1]))
    return (
        f"{result['out']}: {result['bytes']:,} bytes of {result['max_bytes']:,}, {result['bits_per_weight']:.2f} bits "
        f"per weight; {types}\n"
        f"mean KL from the original {found['kl_mean']['mean']:.5f} nats, 99.9 % {found['kl_999']:.4f}, same top token "
        f"{found['same_top']['mean']:.2%}, on {result['judged_on']}{told(result['bos'])}\n"
        f"{result['evaluations']} plans measured; {whole:.0f} seconds: "
        + ", ".join(f"{step} {spent:.0f} ({spent / whole:.0%})" for step, spent in seconds.items())
        + f"\nreport: {result['out']}.apportion/report.md"
    )
