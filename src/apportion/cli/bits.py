"""Commands of CoopQ: quantize, its four steps alone, and perplexity."""

from pathlib import Path
from typing import Annotated, Any

import typer

from apportion.cli.base import app, emit
from apportion.core.errors import InputError

ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="Local checkpoint folder, or hub name owner/name.")]
Out = Annotated[Path, typer.Option(help="Folder to write; refused if it holds something, unless --resume.")]
OutFile = Annotated[Path, typer.Option(help="File to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AvgBits = Annotated[float | None, typer.Option(help="Budget as mean bits over the quantized weights.")]
MaxBytes = Annotated[str | None, typer.Option(help="Budget as bytes of the weight files, e.g. 24MB or 2GiB.")]
Widths = Annotated[str, typer.Option(help="Bits that a player may have.")]
Method = Annotated[str, typer.Option(help="coopq (the paper), regression, or shapley (means alone).")]
Players = Annotated[str, typer.Option(help="blocks, or linears (q/k/v and gate/up tied).")]
MethodOrAuto = Annotated[str, typer.Option(help="auto (measured search), coopq (the paper), regression or shapley.")]
Evaluations = Annotated[int, typer.Option(help="Plans that auto may measure.")]
Finalists = Annotated[int, typer.Option(help="Plans that auto writes and measures again.")]
UntilStable = Annotated[bool, typer.Option("--until-stable", help="Stop sampling when the plans stop changing.")]
MaybeWidths = Annotated[str | None, typer.Option("--widths", help="Bits of a player [auto: 2,3,4; else 2,4].")]
MaybePlayers = Annotated[
    str | None,
    typer.Option("--players", help="blocks, or linears with q/k/v and gate/up tied [auto: linears; else blocks]."),
]
Untie = Annotated[bool, typer.Option("--untie", help="Leave q/k/v and gate/up free (servers that fuse them refuse).")]
RoundingName = Annotated[str, typer.Option("--rounding", help="nearest, quanto, hqq or gptq.")]
ApplyRounding = Annotated[
    str | None, typer.Option(help="Rounding that plans are written with; --rounding if left out.")
]
RoundingWindows = Annotated[int, typer.Option(help="Windows of the text that gptq sees, at most.")]
GroupSize = Annotated[int, typer.Option(help="Weights that share a scale.")]
Calibration = Annotated[
    Path | None, typer.Option(help=".txt or .jsonl with 'text'; without it the model samples its own text.")
]
Windows = Annotated[int, typer.Option(help="Calibration windows.")]
WindowTokens = Annotated[int, typer.Option(help="Tokens per window.")]
Permutations = Annotated[int, typer.Option(help="Random orders of the players (the paper's M).")]
Alpha = Annotated[float, typer.Option(help="Shrinkage of the covariance towards its diagonal.")]
Seed = Annotated[int, typer.Option(help="Root of all randomness.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: what the game is played in.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths as `2,4`."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise InputError(f"--widths {text}: expected numbers with commas, e.g. 2,4") from error


@app.command(rich_help_panel="Bits for layers")
def quantize(
    model: ModelArg,
    out: Out,
    avg_bits: AvgBits = None,
    max_bytes: MaxBytes = None,
    method: MethodOrAuto = "auto",
    evaluations: Evaluations = 500,
    widths: MaybeWidths = None,
    players: MaybePlayers = None,
    untie: Untie = False,
    rounding: RoundingName = "nearest",
    apply_rounding: ApplyRounding = None,
    rounding_windows: RoundingWindows = 128,
    group_size: GroupSize = 64,
    calibration: Calibration = None,
    windows: Windows = 32,
    window_tokens: WindowTokens = 512,
    permutations: Permutations = 100,
    until_stable: UntilStable = False,
    alpha: Alpha = 0.5,
    finalists: Finalists = 3,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a checkpoint to a memory budget; transformers and vLLM load the result.

    Example: apportion quantize ./Llama-3.2-3B --avg-bits 3 --calibration c4.jsonl --out ./llama-3bit
    """
    from apportion.bits.auto import default_widths
    from apportion.bits.budget import parse_bytes
    from apportion.bits.quantize import Quantization
    from apportion.bits.quantize import quantize as run
    from apportion.bits.rounding import rounding_named
    from apportion.bits.sample import Sampling

    searched = method == "auto"
    own = default_widths(rounding_named(rounding).bits) if searched else (2, 4)
    sampling = Sampling(
        parse_widths(widths) if widths else own, players or ("linears" if searched else "blocks"), untie, rounding,
        group_size, calibration, windows, window_tokens, permutations, False, seed, rounding_windows, apply_rounding,
    )  # fmt: skip
    limit = parse_bytes(max_bytes) if max_bytes is not None else None
    ask = Quantization(
        avg_bits, limit, method, alpha, evaluations, finalists, until_stable, device, dtype, trust_remote_code
    )
    result = run(model, out, ask, sampling, resume=resume)
    emit(result, as_json=as_json, text=quantize_text(result))


def quantize_text(result: dict[str, Any]) -> str:
    """What a person sees when the run is done."""
    return (
        f"{result['out']}: {result['avg_bits']:.3f} bits on average, {result['bytes']:,} bytes of weights\n"
        f"NLL on {result['calibration']}: {result['nll_fp']:.4f} full precision, {result['nll_high']:.4f} all at the "
        f"highest width, {result['nll_plan']:.4f} this plan\n"
        f"{result['evaluations']} coalitions, {result['block_forwards']:,} block forwards "
        f"(naive: {result['naive_block_forwards']:,}), {result['seconds']:.0f} s\n"
        f"report: {result['out']}/report/report.md"
    )


@app.command(rich_help_panel="Bits for layers, step by step")
def samples(
    model: ModelArg,
    out: Out,
    widths: Widths = "2,4",
    players: Players = "blocks",
    untie: Untie = False,
    rounding: RoundingName = "nearest",
    apply_rounding: ApplyRounding = None,
    rounding_windows: RoundingWindows = 128,
    group_size: GroupSize = 64,
    calibration: Calibration = None,
    windows: Windows = 32,
    window_tokens: WindowTokens = 512,
    permutations: Permutations = 100,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Measure the coalitions of SPQE; one run serves every budget.

    Example: apportion samples ./model --calibration c4.jsonl --permutations 50 --out ./samples
    """
    from apportion.bits.quantize import Quantization, open_table
    from apportion.bits.sample import Sampling, take_samples

    sampling = Sampling(
        parse_widths(widths), players, untie, rounding, group_size, calibration, windows, window_tokens,
        permutations, False, seed, rounding_windows, apply_rounding,
    )  # fmt: skip
    table = open_table(model, sampling, Quantization(device=device, dtype=dtype, trust_remote_code=trust_remote_code))
    taken = take_samples(table, out, resume=resume)
    result = {"coalitions": len(taken.values), "nll_high": taken.nll_high, "nll_low": taken.nll_low, **taken.counts}
    emit({**result, "out": str(out)}, as_json=as_json, text=f"{out}: {len(taken.values)} coalitions measured")


@app.command(rich_help_panel="Bits for layers, step by step")
def sensitivity(
    samples_folder: Annotated[Path, typer.Argument(metavar="SAMPLES", help="Folder written by `samples`.")],
    out: OutFile,
    method: Method = "coopq",
    alpha: Alpha = 0.5,
    as_json: AsJson = False,
) -> None:
    """Estimate what each player's width costs, alone and beside the others.

    Example: apportion sensitivity ./samples --method regression --out sensitivity.json
    """
    from apportion.bits.samples import load_samples
    from apportion.bits.sensitivity import estimate
    from apportion.core.artifact import plain, write_json

    found = estimate(load_samples(samples_folder), method, alpha=alpha)
    write_json(out, found)
    emit(plain(found), as_json=as_json, text=f"{out}: {method}, {len(found.players)} players")


@app.command(rich_help_panel="Bits for layers, step by step")
def plan(
    sensitivity_file: Annotated[Path, typer.Argument(metavar="SENSITIVITY", help="File written by `sensitivity`.")],
    out: OutFile,
    avg_bits: AvgBits = None,
    max_bytes: MaxBytes = None,
    as_json: AsJson = False,
) -> None:
    """Choose the widths under a budget.

    Example: apportion plan sensitivity.json --max-bytes 24MB --out plan.json
    """
    from apportion.bits.allocate import allocate
    from apportion.bits.budget import parse_bytes
    from apportion.bits.quantize import Quantization
    from apportion.bits.sensitivity import sensitivity_from
    from apportion.core.artifact import plain, read_json, write_json

    loaded = sensitivity_from(read_json(sensitivity_file))
    limit = parse_bytes(max_bytes) if max_bytes is not None else None
    found = allocate(loaded, Quantization(avg_bits=avg_bits, max_bytes=limit).budget(loaded))
    write_json(out, found)
    text = f"{out}: {found.avg_bits:.3f} bits on average, at most {found.total_bytes:,} bytes of weights"
    emit(plain(found), as_json=as_json, text=text)


@app.command(rich_help_panel="Bits for layers, step by step")
def apply(
    model: ModelArg,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="File written by `plan`.")],
    out: Out,
    apply_rounding: ApplyRounding = None,
    calibration: Calibration = None,
    rounding_windows: RoundingWindows = 128,
    window_tokens: WindowTokens = 512,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Write the checkpoint of a plan, with the rounding it was made for or another.

    Example: apportion apply ./model plan.json --apply-rounding gptq --calibration c4.jsonl --out ./model-3bit
    """
    from apportion.bits.model import load_model, load_tokenizer
    from apportion.bits.plan import plan_from
    from apportion.bits.quantize import apply as run
    from apportion.bits.sample import Sampling
    from apportion.core.artifact import read_json
    from apportion.core.device import place

    loaded = plan_from(read_json(plan_file))
    text = Sampling(calibration=calibration, rounding_windows=rounding_windows, window_tokens=window_tokens, seed=seed)
    staged, tokenizer = load_model(model, place(device)), load_tokenizer(model)
    result = run(staged, tokenizer, loaded, out, resume=resume, rounding=apply_rounding, sampling=text)
    emit(result, as_json=as_json, text=f"{out}: {result['bytes']:,} bytes of weights")


@app.command(rich_help_panel="Bits for layers")
def perplexity(
    model: ModelArg,
    text: Annotated[Path, typer.Option(help=".txt as one string, .jsonl with a 'text' field.")],
    window_tokens: WindowTokens = 512,
    windows: Annotated[int | None, typer.Option(help="Only the first so many windows.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Perplexity of a checkpoint on a text: one stream, non-overlapping windows.

    Example: apportion perplexity ./model-3bit --text wikitext2-test.txt --window-tokens 512
    """
    from apportion.bits.quantize import measure_perplexity

    found = measure_perplexity(model, text, window_tokens=window_tokens, windows=windows, device=device, dtype=dtype)
    emit(found, as_json=as_json, text=f"perplexity {found['perplexity']:.3f} over {found['tokens']:,} tokens")
