"""Options that several commands have, each defined once: name, help and, in a group, default."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apportion.core.errors import InputError, require_all

if TYPE_CHECKING:
    from apportion.bits.quantize import QuantizeRequest
    from apportion.bits.recipe import Recipe
    from apportion.models.mixture import Share

ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="Local checkpoint folder, or hub name owner/name.")]
Out = Annotated[
    Path,
    typer.Option(help="Where to write; refused if it holds something, unless --resume."),
]
OutFile = Annotated[Path, typer.Option(help="File to write.")]
Text = Annotated[Path, typer.Option(help="Held-out text: .txt as one string, .jsonl with 'text' or 'messages'.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AvgBits = Annotated[float | None, typer.Option(help="Budget as mean bits over the quantized weights.")]
MaxBytes = Annotated[str | None, typer.Option(help="Budget as bytes of the weight files, e.g. 24MB or 2GiB.")]
Alpha = Annotated[float, typer.Option(help="Shrinkage of the covariance towards its diagonal (coopq).")]
Keep = Annotated[
    str | None, typer.Option(help="embedding, head or both with commas: they stay at 16 bits whatever the budget.")
]
EmbeddingBits = Annotated[
    str,
    typer.Option(help="Bits of the embedding besides 16: 8, or 4,8 (stock transformers loads no 4-bit embedding)."),
]
ApplyRounding = Annotated[
    str | None,
    typer.Option(help="Rounding that plans are written with; left out: --rounding, of a saved plan its own."),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[=SHARE]",
        help="Texts, or conversations ('messages'); several with shares: a.jsonl=2 and b.jsonl=1, an option each. "
        "Without it the model samples its own text.",
    ),
]
Bos = Annotated[
    str,
    typer.Option(help="Beginning-of-text token before every window: auto (as the tokenizer does), always or never."),
]
RoundingWindows = Annotated[int, typer.Option(help="Windows of the text that gptq sees, at most.")]
Tune = Annotated[
    int | None, typer.Option(help="Steps by which written codes and scales are learned (nearest, gptq); 0: not.")
]
TuneScales = Annotated[int | None, typer.Option(help="Steps by which scales alone are tuned instead.")]
TuneWindows = Annotated[int, typer.Option(help="Windows of the text that tuning sees, at most.")]
WindowTokens = Annotated[int, typer.Option(help="Tokens per window.")]
Seed = Annotated[int, typer.Option(help="Root of all randomness.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """What the measured values depend on, besides the model."""

    widths: Annotated[
        str | None,
        typer.Option(
            help="Widths that a player may have, in bits or by name: 2,4 or w2g32,w3g64 (blocks: 2,4; linears: 2,3,4)."
        ),
    ] = None
    players: Annotated[
        str | None,
        typer.Option(help="blocks, or linears with q/k/v and gate/up tied (blocks; quantize --method auto: linears)."),
    ] = None
    untie: Annotated[
        bool, typer.Option("--untie", help="Leave q/k/v and gate/up free (quanto and hqq only: servers fuse them).")
    ] = False
    per_expert: Annotated[
        bool, typer.Option("--per-expert", help="A player for each expert (quanto and hqq only: servers fuse them).")
    ] = False
    rounding: Annotated[
        str | None,
        typer.Option(
            help="nearest, quanto, hqq or gptq; left out: the best that the machine affords (quantize), else nearest."
        ),
    ] = None
    rounding_windows: RoundingWindows = 128
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse linears that no group divides, instead of leaving them as they are."),
    ] = False
    group_size: Annotated[int, typer.Option(help="Weights that share a scale.")] = 64
    calibration: Calibration = None
    bos: Bos = "auto"
    windows: Annotated[int, typer.Option(help="Calibration windows.")] = 32
    window_tokens: WindowTokens = 512
    labels: Annotated[
        str | None,
        typer.Option(
            help="Next tokens in a value: text (the paper's NLL), or predictions of full precision, which makes it "
            "the mean KL divergence (quantize --method auto)."
        ),
    ] = None
    permutations: Annotated[
        int, typer.Option(help="Random orders of the players (the paper's M); quantize --method auto draws none.")
    ] = 100
    seed: Seed = 0

    def recipe(self, **more: Any) -> "Recipe":
        """The library's recipe; what was not given is left to the method.

        Args:
            more: fields that only some commands have options for.
        """
        from apportion.bits.recipe import Recipe

        own: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        own["widths"] = None if self.widths is None else parse_widths(self.widths)
        return Recipe(**{**own, **read_texts(self.calibration, self.bos)}, **more)


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """Where a model is run, and whether its own code is."""

    device: Device = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: what is computed in.")] = "auto"
    trust_remote_code: Remote = False

    def ask(self) -> "QuantizeRequest":
        """For `open_model`."""
        from apportion.bits.quantize import QuantizeRequest

        return QuantizeRequest(device=self.device, dtype=self.dtype, trust_remote_code=self.trust_remote_code)


def parse_widths(text: str) -> tuple[str, ...]:
    """Widths with commas; what each means is the recipe's to say."""
    return tuple(part.strip() for part in text.split(","))


def parse_names(text: str | None) -> tuple[str, ...]:
    """Names with commas; none where the option was left out."""
    return () if text is None else tuple(part.strip() for part in text.split(","))


def parse_bits(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers of bits with commas.

    Raises:
        InputError: something else.
    """
    parts = parse_names(text)
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"{option} {text}: expected bits with commas", "e.g. 8, or 4,8")
    return tuple(int(part) for part in parts)


CONVENTIONS = {"auto": None, "always": True, "never": False}


def parse_bos(text: str) -> bool | None:
    """Whether windows begin with the beginning-of-text token; None: as the tokenizer does.

    Raises:
        InputError: another word.
    """
    if text not in CONVENTIONS:
        raise InputError(f"--bos {text}: unknown", f"choose from {', '.join(CONVENTIONS)}")
    return CONVENTIONS[text]


def parse_share(text: str) -> "Share":
    """A file and its share, 1 where none is given; a file whose own name holds the sign is taken as it is.

    Raises:
        InputError: the share is no number.
    """
    from apportion.models.mixture import Share

    name, sign, share = text.rpartition("=")
    if not sign or Path(text).exists():
        return Share(Path(text))
    try:
        return Share(Path(name), float(share))
    except ValueError as error:
        raise InputError(
            f"--calibration {text}: expected a number after the last =", "e.g. a.jsonl=2, or a.jsonl alone"
        ) from error


def read_texts(calibration: list[str] | None, bos: str) -> dict[str, Any]:
    """The recipe's fields `calibration` (one file as its path) and `bos`.

    Raises:
        InputError: shares that are no numbers, or an unknown convention, all at once.
    """
    found: list[Share] = []
    given = calibration or []
    require_all(lambda: parse_bos(bos), *(lambda item=item: found.append(parse_share(item)) for item in given))
    alone = len(found) == 1 and found[0].share > 0
    return {"calibration": found[0].path if alone else tuple(found) or None, "bos": parse_bos(bos)}


def tuning(tune: int | None, tune_scales: int | None) -> dict[str, Any]:
    """The recipe's fields for the two ways of tuning, of which one may be asked for.

    Raises:
        InputError: both are.
    """
    if tune is not None and tune_scales is not None:
        raise InputError("--tune and --tune-scales: expected one of them", "codes and scales, or scales alone")
    return {"tune": tune if tune_scales is None else tune_scales, "codes": tune_scales is None}


def options_given(context: typer.Context) -> list[str]:
    """The options that stand on the command line, e.g. `--avg-bits`, in the order of the help."""
    named = {item.name or "": item.opts[0] for item in context.command.params if item.opts[0].startswith("--")}
    found = {name: context.get_parameter_source(name) for name in named}
    return [named[name] for name, source in found.items() if source is not None and source.name == "COMMANDLINE"]


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
