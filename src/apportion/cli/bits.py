"""Commands of CoopQ: quantize, its four steps alone, and perplexity."""

from pathlib import Path
from typing import Annotated, Any

import typer

from apportion.cli.base import app, emit
from apportion.cli.gguf import FileOptions, file_text, quantize_file, require_format
from apportion.cli.options import (
    Alpha,
    ApplyRounding,
    AsJson,
    AvgBits,
    Bos,
    Calibration,
    Device,
    EmbeddingBits,
    Keep,
    MaxBytes,
    ModelArg,
    Out,
    OutFile,
    PlaceOptions,
    RecipeOptions,
    Remote,
    Resume,
    RoundingWindows,
    Seed,
    Text,
    Tune,
    TuneScales,
    TuneWindows,
    WindowTokens,
    options_given,
    parse_bits,
    parse_bos,
    parse_names,
    read_texts,
    tuning,
    with_groups,
)

METHODS = "coopq (the paper), regression, or shapley (means alone)"


@app.command(rich_help_panel="Bits for layers")
@with_groups
def quantize(
    context: typer.Context,
    model: ModelArg,
    out: Out,
    *,
    avg_bits: AvgBits = None,
    max_bytes: MaxBytes = None,
    keep: Keep = None,
    embedding_bits: EmbeddingBits = "8",
    method: Annotated[str, typer.Option(help=f"auto (measured search), {METHODS}.")] = "auto",
    evaluations: Annotated[int, typer.Option(help="Plans that the search of auto may measure.")] = 500,
    finalists: Annotated[int, typer.Option(help="Plans that auto writes and measures again.")] = 3,
    apply_rounding: ApplyRounding = None,
    tune: Tune = None,
    tune_scales: TuneScales = None,
    tune_windows: TuneWindows = 1024,
    fast: Annotated[
        bool, typer.Option("--fast", help="As quick as can be: nearest codes, untuned, unless asked otherwise.")
    ] = False,
    alpha: Alpha = 0.5,
    until_stable: Annotated[
        bool, typer.Option("--until-stable", help="Stop sampling when the plans stop changing (not with auto).")
    ] = False,
    recipe: RecipeOptions,
    file: FileOptions,
    place: PlaceOptions,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a checkpoint to a memory budget: a folder for transformers and vLLM, or a GGUF file for llama.cpp.

    Example: apportion quantize ./Llama-3.2-3B --avg-bits 3 --calibration c4.jsonl --out ./llama-3bit
    One file for llama.cpp: apportion quantize ./Llama-3.2-3B --format gguf --max-bytes 1.5GB --out model.gguf
    """
    if file.is_gguf(options_given(context)):
        written = quantize_file(model, out, file, max_bytes, recipe, place, resume=resume)
        emit(written, as_json=as_json, text=file_text(written))
        return

    from apportion.bits.plan import parse_bytes
    from apportion.bits.quantize import QuantizeRequest
    from apportion.bits.quantize import quantize as run

    ask = QuantizeRequest(
        avg_bits=avg_bits,
        max_bytes=parse_bytes(max_bytes) if max_bytes is not None else None,
        bits_per_weight=file.bits_per_weight,
        keep=parse_names(keep),
        embedding_bits=parse_bits("--embedding-bits", embedding_bits),
        method=method,
        alpha=alpha,
        evaluations=evaluations,
        finalists=finalists,
        fast=fast,
        until_stable=until_stable,
        device=place.device,
        dtype=place.dtype,
        trust_remote_code=place.trust_remote_code,
    )
    ways = tuning(tune, tune_scales)
    asked = recipe.recipe(apply_rounding=apply_rounding, tune_windows=tune_windows, **ways)
    result = run(model, out, ask, asked, resume=resume)
    emit(result, as_json=as_json, text=quantize_text(result))


def quantize_text(result: dict[str, Any]) -> str:
    """What a person sees when the run is done."""
    from apportion.bits.plan.budget import LEFT
    from apportion.bits.report import choice_note, divergence_note, loss_name, tuning_note, vocabulary_note
    from apportion.models.text import told

    resumed = result["resumed_evaluations"]
    earlier = f" (and {resumed} of an earlier run)" if resumed else ""
    return (
        f"{result['out']}: {result['avg_bits']:.3f} bits on average ({result['stored_bits']:.3f} with scales), "
        f"{result['bytes']:,} bytes of weights, for {' and '.join(result['servers'])}\n"
        f"{loading_note(result)}{vocabulary_note(result)}\n"
        + (f"budget: {result['budget']}\n" if LEFT in result["budget"] else "")
        + f"{loss_name(result)} on {result['calibration']}{told(result['bos'])}: "
        f"{result['nll_fp']:.4f} full precision, "
        f"{result['nll_high']:.4f} all at the highest width, {result['nll_plan']:.4f} this plan\n"
        + "".join(f"{line}\n" for line in divergence_note(result) if line)
        + f"{result['evaluations']} coalitions{earlier}, {result['block_forwards']:,} block forwards "
        f"(naive: {result['naive_block_forwards']:,}), {result['seconds']:.0f} s\n"
        + (choice_note(result["choice"]) + "\n" if result["choice"] else "")
        + (tuning_note(result["tuned"]) + "\n" if result["tuned"] else "")
        + f"report: {result['out']}/report/report.md"
    )


def loading_note(result: dict[str, Any]) -> str:
    """Why stock transformers cannot use a folder of its own format; nothing where it can.

    >>> loading_note({"servers": ["transformers", "vLLM"], "loads_in": {"transformers": "KeyError: 'a'"}})
    "stock transformers cannot use it: KeyError: 'a'\\n"
    """
    why = result.get("loads_in", {}).get("transformers", "")
    return f"stock transformers cannot use it: {why}\n" if why and "transformers" in result["servers"] else ""


@app.command(rich_help_panel="Bits for layers, step by step")
@with_groups
def samples(
    model: ModelArg,
    out: Out,
    *,
    apply_rounding: ApplyRounding = None,
    recipe: RecipeOptions,
    place: PlaceOptions,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Measure the coalitions of SPQE; one run serves every budget.

    Example: apportion samples ./model --calibration c4.jsonl --permutations 50 --out ./samples
    """
    from apportion.bits.quantize import open_model
    from apportion.bits.quantizer import take_samples
    from apportion.bits.recipe import require_tied
    from apportion.core.artifact import require_free
    from apportion.models.text import told

    asked = recipe.recipe(apply_rounding=apply_rounding)
    require_tied(asked)
    require_free(out, resume=resume, kind="samples")
    taken = take_samples(open_model(model, asked, place.ask()), out, resume=resume)
    bos = taken.windows.bos
    labels = taken.settings.get("labels", "text")
    result = {
        "coalitions": len(taken.values),
        "labels": labels,
        "nll_high": taken.nll_high,
        "nll_low": taken.nll_low,
        **taken.counts,
    }
    text = f"{out}: {len(taken.values)} coalitions measured on {len(taken.windows.windows)} windows{told(bos)}"
    emit({**result, "bos": bos, "out": str(out)}, as_json=as_json, text=text)


@app.command(rich_help_panel="Bits for layers, step by step")
def sensitivity(
    samples_folder: Annotated[Path, typer.Argument(metavar="SAMPLES", help="Folder written by `samples`.")],
    out: OutFile,
    method: Annotated[str, typer.Option(help=f"{METHODS}.")] = "coopq",
    alpha: Alpha = 0.5,
    as_json: AsJson = False,
) -> None:
    """Estimate what each player's width costs, alone and beside the others.

    Example: apportion sensitivity ./samples --method regression --out sensitivity.json
    """
    from apportion.bits.game import load_samples
    from apportion.bits.plan import estimate
    from apportion.core.artifact import plain, require_replaceable, write_json

    require_replaceable(out, "costs", "method")
    found = estimate(load_samples(samples_folder), method, alpha=alpha)
    write_json(out, found)
    emit(plain(found), as_json=as_json, text=f"{out}: {method}, {len(found.costs.players)} players")


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
    from apportion.bits.plan import allocate, parse_bytes, sensitivity_from
    from apportion.bits.quantize import QuantizeRequest
    from apportion.core.artifact import plain, read_json, require_replaceable, write_json

    require_replaceable(out, "costs", "assignment")
    loaded = sensitivity_from(read_json(sensitivity_file))
    limit = parse_bytes(max_bytes) if max_bytes is not None else None
    found = allocate(loaded, QuantizeRequest(avg_bits=avg_bits, max_bytes=limit).budget(loaded.costs))
    write_json(out, found)
    text = f"{out}: {found.avg_bits:.3f} bits on average, at most {found.total_bytes:,} bytes of weights\n{found.asked}"
    emit(plain(found), as_json=as_json, text=text)


@app.command(rich_help_panel="Bits for layers, step by step")
def apply(
    model: ModelArg,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="File written by `plan`.")],
    out: Out,
    apply_rounding: ApplyRounding = None,
    form: Annotated[
        str,
        typer.Option("--format", help="checkpoint (a folder), or gguf: one file of the same codes (Q4_0 and Q8_0)."),
    ] = "checkpoint",
    calibration: Calibration = None,
    bos: Bos = "auto",
    rounding_windows: RoundingWindows = 128,
    tune: Tune = None,
    tune_scales: TuneScales = None,
    tune_windows: TuneWindows = 1024,
    window_tokens: WindowTokens = 512,
    seed: Seed = 0,
    device: Device = "auto",
    trust_remote_code: Remote = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Write the checkpoint of a plan, with the rounding it was made for or another; or the same weights as a GGUF file.

    Example: apportion apply ./model plan.json --apply-rounding gptq --calibration c4.jsonl --out ./model-3bit
    """
    from apportion.bits.apply import apply as checkpoint
    from apportion.bits.gguf.apply import apply_gguf
    from apportion.bits.plan import plan_from
    from apportion.bits.recipe import Recipe
    from apportion.core.artifact import read_json
    from apportion.models.text import told

    require_format(form)
    loaded = plan_from(read_json(plan_file))
    text = Recipe(
        **read_texts(calibration, bos),
        rounding_windows=rounding_windows,
        window_tokens=window_tokens,
        tune_windows=tune_windows,
        seed=seed,
        **tuning(tune, tune_scales),
    )
    run = apply_gguf if form == "gguf" else checkpoint
    result = run(
        model,
        loaded,
        out,
        rounding=apply_rounding,
        recipe=text,
        device=device,
        trust_remote_code=trust_remote_code,
        resume=resume,
    )
    what = "bytes" if form == "gguf" else "bytes of weights"
    windows = "" if result["bos"] is None else f"; windows of its text{told(result['bos'])}"
    over = result.get("over_budget")
    more = f"; the blocks take {over:,} more than the plan could spend: 2 and 3 bits have the room of 4" if over else ""
    emit(result, as_json=as_json, text=f"{out}: {result['bytes']:,} {what}{more}{windows}")


@app.command(rich_help_panel="Bits for layers")
@with_groups
def perplexity(
    model: ModelArg,
    text: Text,
    *,
    window_tokens: WindowTokens = 512,
    windows: Annotated[int | None, typer.Option(help="Only the first so many windows.")] = None,
    bos: Bos = "auto",
    place: PlaceOptions,
    as_json: AsJson = False,
) -> None:
    """Perplexity of a checkpoint on a text: one stream, non-overlapping windows.

    Example: apportion perplexity ./model-3bit --text wikitext2-test.txt --window-tokens 512
    Each window after a beginning-of-text token, or none: --bos always, --bos never (Gemma needs it).
    """
    from apportion.bits.perplexity import perplexity as run
    from apportion.models.text import told

    found = run(
        model,
        text,
        window_tokens=window_tokens,
        windows=windows,
        bos=parse_bos(bos),
        device=place.device,
        dtype=place.dtype,
        trust_remote_code=place.trust_remote_code,
    )
    value = {
        "perplexity": found.perplexity,
        "nll": found.nll,
        "tokens": found.tokens,
        "windows": len(found.windows),
        "bos": found.bos,
        "unread": list(found.unread),
    }
    over = f"{found.tokens:,} tokens in {len(found.windows)} windows{told(found.bos)}"
    first = ", ".join([*found.unread[:3], *["..."] * (len(found.unread) > 3)])
    left = f"\n{len(found.unread)} tensors of the checkpoint are no part of the loaded model: {first}" if first else ""
    emit(value, as_json=as_json, text=f"perplexity {found.perplexity:.3f} over {over}{left}")
