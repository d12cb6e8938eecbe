"""Options that several commands have, each defined once: name, help and, in a group, default."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apportion.core.errors import InputError

if TYPE_CHECKING:
    from apportion.bits.quantize import Quantization
    from apportion.bits.recipe import Sampling

ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="Local checkpoint folder, or hub name owner/name.")]
Out = Annotated[Path, typer.Option(help="Folder to write; refused if it holds something, unless --resume.")]
OutFile = Annotated[Path, typer.Option(help="File to write.")]
Text = Annotated[Path, typer.Option(help="Held-out text: .txt as one string, .jsonl with a 'text' field.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AvgBits = Annotated[float | None, typer.Option(help="Budget as mean bits over the quantized weights.")]
MaxBytes = Annotated[str | None, typer.Option(help="Budget as bytes of the weight files, e.g. 24MB or 2GiB.")]
Alpha = Annotated[float, typer.Option(help="Shrinkage of the covariance towards its diagonal (coopq).")]
ApplyRounding = Annotated[
    str | None, typer.Option(help="Rounding that plans are written with; --rounding if left out.")
]
Calibration = Annotated[
    Path | None, typer.Option(help=".txt or .jsonl with 'text'; without it the model samples its own text.")
]
RoundingWindows = Annotated[int, typer.Option(help="Windows of the text that gptq sees, at most.")]
Tune = Annotated[int, typer.Option(help="Steps by which written scales are tuned (nearest, gptq), e.g. 200; 0: not.")]
TuneWindows = Annotated[int, typer.Option(help="Windows of the text that tuning sees, at most.")]
WindowTokens = Annotated[int, typer.Option(help="Tokens per window.")]
Seed = Annotated[int, typer.Option(help="Root of all randomness.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What the measured values depend on, besides the model."""

    widths: Annotated[
        str | None, typer.Option(help="Bits that a player may have (2,4; quantize --method auto: 2,3,4).")
    ] = None
    players: Annotated[
        str | None,
        typer.Option(help="blocks, or linears with q/k/v and gate/up tied (blocks; quantize --method auto: linears)."),
    ] = None
    untie: Annotated[
        bool, typer.Option("--untie", help="Leave q/k/v and gate/up free (quanto and hqq only: servers fuse them).")
    ] = False
    rounding: Annotated[str, typer.Option(help="nearest, quanto, hqq or gptq.")] = "nearest"
    rounding_windows: RoundingWindows = 128
    group_size: Annotated[int, typer.Option(help="Weights that share a scale.")] = 64
    calibration: Calibration = None
    windows: Annotated[int, typer.Option(help="Calibration windows.")] = 32
    window_tokens: WindowTokens = 512
    permutations: Annotated[
        int, typer.Option(help="Random orders of the players (the paper's M); quantize --method auto draws none.")
    ] = 100
    seed: Seed = 0

    def settings(
        self, *, widths: tuple[int, ...] = (2, 4), players: str = "blocks", apply_rounding: str | None = None
    ) -> "Sampling":
        """The library's settings, with these widths and players where none were given."""
        from apportion.bits.recipe import Sampling

        return Sampling(
            widths=widths if self.widths is None else parse_widths(self.widths),
            players=players if self.players is None else self.players,
            untie=self.untie,
            rounding=self.rounding,
            group_size=self.group_size,
            calibration=self.calibration,
            windows=self.windows,
            window_tokens=self.window_tokens,
            permutations=self.permutations,
            seed=self.seed,
            rounding_windows=self.rounding_windows,
            apply_rounding=apply_rounding,
        )


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """Where a model is run, and whether its own code is."""

    device: Device = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: what is computed in.")] = "auto"
    trust_remote_code: Remote = False

    def ask(self) -> "Quantization":
        """For `open_table`."""
        from apportion.bits.quantize import Quantization

        return Quantization(device=self.device, dtype=self.dtype, trust_remote_code=self.trust_remote_code)


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths as `2,4`."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise InputError(f"--widths {text}: expected numbers with commas, e.g. 2,4") from error


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are groups (dataclasses of options) are options of their own."""
    asked = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {item.name: item.annotation for item in asked if is_dataclass(item.annotation)}
    flat: list[inspect.Parameter] = []
    for item in asked:
        if item.name in groups:
            flat += [
                inspect.Parameter(own.name, inspect.Parameter.KEYWORD_ONLY, default=own.default, annotation=own.type)
                for own in fields(groups[item.name])
            ]
        else:
            flat.append(item.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**given: object) -> None:
        for name, group in groups.items():
            given[name] = group(**{own.name: given.pop(own.name) for own in fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in flat}
    return run
