"""The main job in one call: checkpoint, text and budget in; a mixed-precision checkpoint and its evidence out."""

import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

from apportion.bits.checkpoint import write_checkpoint
from apportion.bits.chosen import Chosen, by_estimate, by_search, frontier_plans, measured, uniform_rows
from apportion.bits.game import Samples, measure, widths_by_path
from apportion.bits.game.samples import SAMPLES, VALUES, WINDOWS
from apportion.bits.offers import leaves_room, offers_for
from apportion.bits.plan import Plan, require_evaluations
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.report import write_report
from apportion.bits.request import QuantizeRequest as QuantizeRequest
from apportion.bits.rounding import best_affordable, require_windows
from apportion.bits.time_left import foretell
from apportion.bits.vocabulary import servers_of, told
from apportion.bits.written import proven
from apportion.core.artifact import (
    CHECKPOINT,
    RUN,
    Json,
    finished,
    read_manifest,
    start,
    versions,
    write_json,
    write_manifest,
)
from apportion.core.device import free_bytes, peak_memory, place
from apportion.core.log import read_log
from apportion.core.output import SAMPLE_FOLDER, WORK_FOLDER, output_folder
from apportion.core.progress import forecast
from apportion.models.identity import run_identity
from apportion.models.load import load_full
from apportion.models.mixture import identity_of
from apportion.models.structure import head_weights
from apportion.models.vocabulary import names_of

PACKAGES = ("torch", "transformers", "compressed-tensors", "optimum-quanto", "hqq", "pyscipopt", "numpy")
WIDER = 8  # bits, a width of `auto` too where its own leave a budget of the whole file unused
_KEPT = (f"{SAMPLE_FOLDER}/{name}" for name in (SAMPLES, VALUES, WINDOWS))
EVIDENCE = (RUN, "plan.json", "sensitivity.json", "frontier.json", *_KEPT)


def open_model(model: str, recipe: Recipe | None = None, ask: QuantizeRequest | None = None) -> Quantizer:
    """Load a checkpoint and set it up to be quantized.

    Args:
        model: local folder or hub name. recipe: what is measured and how weights are rounded.
        ask: of it `device`, `dtype` and `trust_remote_code` are read.

    Returns:
        The model with its players, their costs and its texts; nothing is measured or rounded yet.

    Raises:
        InputError: the recipe cannot be used, or the checkpoint cannot be loaded or is quantized already.
        ModelStructureError: the model cannot be cut into blocks.

    Cost: the checkpoint in memory, in its own dtype and in that it is computed in.

    >>> quantizer = open_model(MODEL, Recipe(calibration=TEXT, group_size=32))
    >>> [width.name for width in quantizer.costs.widths], len(quantizer.costs.players)
    (['w2g32', 'w4g32'], 2)
    """
    recipe, ask = recipe or Recipe(), ask or QuantizeRequest()
    recipe.check()
    placement = place(ask.device, ask.dtype)
    return Quantizer(*load_full(model, placement, trust_remote_code=ask.trust_remote_code), recipe)


def quantize(
    model: str, out: Path, ask: QuantizeRequest, recipe: Recipe | None = None, *, resume: bool = False
) -> Json:
    """Quantize a checkpoint to a budget.

    Args:
        model: local folder or hub name.
        out: folder of the new checkpoint; plan, sensitivity, samples, report and manifest lie beside it.
        ask: budget and method. recipe: text, widths, players and rounding; what it leaves open the method chooses
            (`Recipe.for_method`), as the command does.
        resume: continue an interrupted run with the same model, text and settings.

    Returns:
        The JSON of the command: avg_bits, bytes, nll_fp, nll_high, nll_plan (nats per token on the calibration
        text, all measured), nll_judged (of the plan as written, on the windows that `judged_on` tells; None where
        there was no choice among written plans), labels (what the next tokens were in all of these: the text's, or
        full precision's predictions), kl_plan and kl_judged (mean KL divergence from full precision, in nats per token
        on the same texts, where the labels are predictions; None elsewhere), bos (whether the text's windows begin with
        that token), block_forwards, naive_block_forwards, evaluations, execution (how values were measured, and what
        memory made it give up), seconds, plan, out, and more.

    Raises:
        ApportionError: see `core.errors`; nothing half-written is taken for complete.

    Cost: `evaluations` (or permutations times players) coalitions on the calibration text, and rounding.

    Source: CoopQ (Findings of ACL 2026, arXiv 2509.15455) with `method="coopq"` and players as blocks; `auto` is ours.

    >>> ask = QuantizeRequest(avg_bits=3, evaluations=20, fast=True)
    >>> recipe = Recipe(calibration=TEXT, windows=2, window_tokens=24, group_size=32)
    >>> result = quantize(MODEL, OUT, ask, recipe)
    >>> result["avg_bits"] <= 3, result["bytes"] == (OUT / "model.safetensors").stat().st_size
    (True, True)
    """
    began = time.monotonic()
    recipe = (recipe or Recipe()).for_method(ask.method)
    ask.check(recipe)
    asked = {"kind": "quantize", "model_source": model, **asdict(ask), **recipe.asked()}
    with output_folder(Path(out), "quantize", resume=resume, reads=[model]) as claimed:
        asked |= {"model": run_identity(model, Path(out)), "text": identity_of(recipe.calibration)}
        if finished(claimed, asked, resume=resume, raisable=("evaluations",)):
            return {**read_manifest(claimed)["result"], "out": str(claimed)}
        run = {"asked": asked, "began": began, "trust_remote_code": ask.trust_remote_code}
        with forecast():
            return quantize_into(claimed, model, ask, recipe, run)


def quantize_into(out: Path, model: str, ask: QuantizeRequest, recipe: Recipe, run: Json) -> Json:
    """The work of `quantize`, in a folder that is held for it.

    Args:
        run: `asked`, what is recorded there; `began`, on the monotonic clock, seconds; `trust_remote_code`.
    """
    quantizer = open_affordable(model, recipe, ask, out / SAMPLE_FOLDER)
    quantizer.require_text()
    offers = offers_for(quantizer, ask)
    if ask.method == "auto":
        require_evaluations(ask.evaluations, len(quantizer.costs.players), len(quantizer.costs.widths))
    if quantizer.recipe.tune and recipe.calibration is not None:
        require_windows(quantizer.tuning_text)
    start(out, run["asked"])
    quantizer.work = out / WORK_FOLDER
    folder = out / SAMPLE_FOLDER
    if ask.method == "auto":
        known = len(read_log(folder / VALUES)[1]) if (folder / VALUES).exists() else 0
        foretell(quantizer, evaluations=ask.evaluations, finalists=ask.finalists + 1, measured=known)
    with quantizer.game(folder, resume=True) as game:
        chosen = (by_search if ask.method == "auto" else by_estimate)(quantizer, game, ask, offers, folder)
        frontier = frontier_plans(chosen.sensitivity, chosen.offer)
        level = [game.costs.uniform(column) for column in range(len(game.costs.widths))]
        samples = measure(game, chosen.samples, [*(item.assignment for item in (chosen.plan, *frontier)), *level])
        execution = {**game.execution(), "embeddings": quantizer.staged.embeddings, "tokenised": quantizer.tokenised}
    frontier = [measured(item, samples) for item in frontier]
    run = {**run, "execution": execution, "kept": offers.kept}
    return finish(out, quantizer, replace(chosen, samples=samples), frontier, run)


def divergences(plan: Plan, samples: Samples) -> Json:
    """What the labels were and, where they are predictions, how far the plan is from full precision: mean KL."""
    labels, kl = samples.settings.get("labels", "text"), None
    if labels == "predictions" and plan.measured_nll is not None:
        kl = plan.measured_nll - float(samples.nll_fp.mean())
    return {"labels": labels, "kl_plan": kl, "kl_judged": plan.judged_kl}


def open_affordable(model: str, recipe: Recipe, ask: QuantizeRequest, samples: Path | None = None) -> Quantizer:
    """`open_model`, with what the recipe leaves open as the machine affords it and as the budget has room for.

    Args:
        samples: of an earlier part of the run, whose widths stay.
    """
    staged, tokenizer = load_full(model, place(ask.device, ask.dtype), trust_remote_code=ask.trust_remote_code)
    device, weights = staged.placement.device, sum(weight.numel() for weight in staged.originals.values())
    head = head_weights(staged.model, staged.layout.head)
    choice = best_affordable(device, weights, free_bytes(device), head=head, fast=ask.fast) if recipe.open else None
    quantizer = Quantizer(staged, tokenizer, recipe, choice)
    formats = quantizer.rounding.format, quantizer.applied.format
    if ask.method != "auto" or recipe.widths is not None or not all(WIDER in form.bits for form in formats):
        return quantizer
    begun = samples / VALUES if samples else None
    if begun and begun.exists() and f"w{WIDER}" not in str(read_log(begun)[0].get("widths")):
        return quantizer
    if quantizer.recipe.kind == "linears" and leaves_room(quantizer, ask):
        own = (width.name for width in quantizer.costs.widths)
        return Quantizer(staged, tokenizer, replace(recipe, widths=(*own, WIDER)), choice)
    return quantizer


def finish(out: Path, quantizer: Quantizer, chosen: Chosen, frontier: list[Plan], run: Json) -> Json:
    """Write the checkpoint, its evidence, the report and, last, the manifest.

    Args:
        run: `execution` (how it was measured), `kept` (why embedding or head are no players), `began` (on the
            monotonic clock, seconds), `trust_remote_code`.
    """
    samples, sensitivity, plan, weights = chosen.samples, chosen.sensitivity, chosen.plan, chosen.weights
    vocabulary = chosen.offer.vocabulary
    widths = widths_by_path(quantizer.staged, quantizer.costs, plan.assignment)
    form = quantizer.applied.format
    weight_bytes, files = write_checkpoint(
        out, quantizer.staged, widths, weights.packed, quantizer.tokenizer, form, vocabulary
    )
    assert weight_bytes <= plan.total_bytes, "the file is larger than predicted"
    proof = proven(out, quantizer.staged, weights.packed, form, vocabulary, trust_remote_code=run["trust_remote_code"])
    plan = replace(plan, total_bytes=weight_bytes)
    write_json(out / "plan.json", plan)
    write_json(out / "sensitivity.json", sensitivity)
    write_json(out / "frontier.json", {"plans": frontier})
    result = {
        "avg_bits": plan.avg_bits,
        "widths": [width.name for width in quantizer.costs.widths],
        "stored_bits": plan.costs.stored_bits(plan.assignment),
        "bytes": weight_bytes,
        "player_bytes": plan.player_bytes,
        "budget": plan.asked,
        "nll_fp": float(samples.nll_fp.mean()),
        "nll_high": samples.nll_high,
        "nll_low": samples.nll_low,
        "nll_plan": plan.measured_nll,
        "nll_judged": plan.judged_nll,
        **divergences(plan, samples),
        "nll_plan_sampled": samples.mean(plan.assignment),
        "nll_predicted": plan.predicted_nll,
        "rounding": quantizer.rounding.name,
        "apply_rounding": quantizer.applied.name,
        "format": form.name,
        "servers": servers_of(form, vocabulary),
        **proof,
        "vocabulary": told(names_of(quantizer.staged), vocabulary, run["kept"], chosen.offer.costs),
        "bits_per_weight": 8 * weight_bytes / quantizer.parameters,
        "choice": asdict(quantizer.choice) if quantizer.choice else None,
        "tuned": weights.tuned,
        "optimal": plan.optimal,
        "source": plan.source,
        "tried": len(plan.tried),
        "uniform": uniform_rows(samples, plan),
        "judged_on": plan.judged_on,
        "method": plan.method,
        "calibration": samples.settings["calibration_source"],
        "bos": samples.windows.bos,
        **samples.counts,
        "execution": run["execution"],
        "seconds": time.monotonic() - run["began"],
        "peak_memory_bytes": peak_memory(),
        "plan": plan.by_name(),
    }
    files += EVIDENCE
    write_json(out / "result.json", result)
    files += ["result.json", *write_report(out)]
    placement = quantizer.staged.placement
    write_manifest(
        out,
        {
            "kind": CHECKPOINT,
            "model": quantizer.staged.digest,
            "settings": samples.settings,
            "placement": placement,
            "versions": versions(*PACKAGES),
            "result": result,
        },
        files,
    )
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return {**result, "out": str(out)}
