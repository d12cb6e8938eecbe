"""The last step alone: round a model as a plan says and write the checkpoint."""

import shutil
from dataclasses import replace
from pathlib import Path

from apportion.bits.checkpoint import require_fusable, write_checkpoint
from apportion.bits.game import widths_by_path
from apportion.bits.game.costs import costs_of
from apportion.bits.plan import Plan
from apportion.bits.quantize import PACKAGES
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe, applied_named
from apportion.bits.rounding import require_tunable, require_windows
from apportion.bits.vocabulary import Vocabulary, named, rounded, servers_of
from apportion.bits.written import proven
from apportion.core.artifact import (
    CHECKPOINT,
    RUN,
    Json,
    digest_of,
    finished,
    read_manifest,
    start,
    versions,
    write_json,
    write_manifest,
)
from apportion.core.device import place
from apportion.core.errors import ArtifactCorruptError, ArtifactMismatchError, BudgetError, InputError
from apportion.core.output import WORK_FOLDER, output_folder
from apportion.formats import COMPRESSED_TENSORS, Format
from apportion.formats.width import require_bits
from apportion.models.load import load_full
from apportion.models.staged import StagedModel
from apportion.models.text import Windows


def apply(
    model: str,
    plan: Plan,
    out: Path,
    *,
    rounding: str | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    resume: bool = False,
) -> Json:
    """Round a checkpoint as a plan says and write it: the last step alone.

    Args:
        model: the checkpoint that the plan was made for, a local folder or hub name.
        plan: of `allocate`, or read back by `plan_from`.
        out: folder to write.
        rounding: the rounding to write with; the plan's own if None.
        recipe: where a rounding that needs moments (gptq) takes its text from; `tune` and its text. Its widths,
            players and roundings are the plan's.
        resume: a complete folder of the same plan, rounding and text is read, an unfinished one written again.

    Returns:
        The JSON of the command: avg_bits, bytes, format, rounding, bos (of the text, where one is used), tuned, plan,
        out.

    Raises:
        ArtifactMismatchError: the plan was made for another model, or the folder from something else.
        ArtifactCorruptError: the plan does not say what it was made for.
        BudgetError: in this rounding's format the plan takes more bytes than it may.
        InputError: the plan gives linears that servers fuse other widths, and the format is for servers; or it gives
            embedding or head a width, and the format is another.

    Cost: rounding once (seconds to minutes), and tuning where it is asked for.

    >>> from apportion import allocate, budget_from_bits, estimate, open_model, take_samples
    >>> recipe = Recipe(calibration=TEXT, windows=2, window_tokens=24, group_size=32, permutations=2)
    >>> sensitivity = estimate(take_samples(open_model(MODEL, recipe), OUT / "samples"))
    >>> plan = allocate(sensitivity, budget_from_bits(sensitivity.costs, 3))
    >>> result = apply(MODEL, plan, OUT / "nearest")
    >>> again = apply(MODEL, plan, OUT / "gptq", rounding="gptq", recipe=recipe)  # the same plan, other codes
    >>> result["bytes"] == again["bytes"]
    True
    """
    return apply_to(
        *load_full(model, place(device), trust_remote_code=trust_remote_code),
        plan,
        out,
        rounding,
        recipe,
        resume=resume,
        trust_remote_code=trust_remote_code,
    )


def apply_to(
    staged: StagedModel,
    tokenizer: object,
    plan: Plan,
    out: Path,
    rounding: str | None = None,
    recipe: Recipe | None = None,
    *,
    resume: bool = False,
    trust_remote_code: bool = False,
) -> Json:
    """`apply` for a model that is loaded already."""
    with output_folder(out, "apply", resume=resume, reads=[staged.source] if staged.source else []):
        recipe = recipe or Recipe()
        return write_plan(
            staged, tokenizer, plan, out, rounding, recipe, resume=resume, trust_remote_code=trust_remote_code
        )


def write_plan(
    staged: StagedModel,
    tokenizer: object,
    plan: Plan,
    out: Path,
    rounding: str | None,
    recipe: Recipe,
    *,
    resume: bool,
    trust_remote_code: bool,
) -> Json:
    """The work of `apply`, in a folder that is held for it."""
    require_made_for(plan, staged)
    backend = applied_named(rounding or plan.settings["apply_rounding"])
    require_bits(plan.costs.widths, backend.format.bits, backend.name)
    widths = widths_by_path(staged, plan.costs, plan.assignment)
    require_fusable(widths, backend.format)
    vocabulary = vocabulary_in(plan, staged, backend.format)
    recipe = recipe_of(plan, recipe, backend.name)
    recipe.check()
    plan = replace(plan, player_bytes=afforded_bytes(staged, plan, backend.format, backend.name))
    require_tunable(backend.name, backend.format, recipe.tune or 0)
    quantizer = Quantizer(staged, tokenizer, recipe)
    if recipe.tune:
        require_windows(quantizer.tuning_text)
    asked = {
        "kind": "apply",
        "plan": digest_of(plan),
        "model": staged.digest,
        "apply_rounding": backend.name,
        "tune": [recipe.tune or 0, recipe.codes],
        **texts_of(quantizer),
    }
    if finished(out, asked, resume=resume):
        return {**read_manifest(out)["result"], "out": str(out)}
    start(out, asked)
    quantizer.work = out / WORK_FOLDER
    weights = quantizer.write(widths)
    packed, form = {**weights.packed, **rounded(staged, vocabulary)}, backend.format
    weight_bytes, files = write_checkpoint(out, staged, widths, packed, tokenizer, form, vocabulary)
    proof = proven(out, staged, packed, form, vocabulary, trust_remote_code=trust_remote_code)
    plan = replace(plan, total_bytes=weight_bytes)
    write_json(out / "plan.json", plan)
    result = {
        "avg_bits": plan.avg_bits,
        "bytes": weight_bytes,
        "rounding": plan.settings["rounding"],
        "apply_rounding": backend.name,
        "format": form.name,
        "servers": servers_of(form, vocabulary),
        **proof,
        "bos": bos_of(quantizer),
        "tuned": weights.tuned,
        "plan": plan.by_name(),
        "vocabulary": dict(plan.vocabulary),
    }
    write_manifest(
        out,
        {"kind": CHECKPOINT, "model": staged.digest, "versions": versions(*PACKAGES), "result": result},
        [*files, RUN, "plan.json"],
    )
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return {**result, "out": str(out)}


def texts_of(quantizer: Quantizer) -> Json:
    """What a plan is written with, by digest: the text of moments, and that of tuning; None where neither is used."""
    moments, tune = quantizer.applied.needs_hessian, quantizer.recipe.tune
    texts = {"text": quantizer.rounding_text if moments else None, "tuned on": quantizer.tuning_text if tune else None}
    return {name: Windows(text, "").digest if text is not None else None for name, text in texts.items()}


def bos_of(quantizer: Quantizer) -> bool | None:
    """Whether the windows a plan is written with begin with the beginning-of-text token; None where none are used."""
    return quantizer.bos if quantizer.applied.needs_hessian or quantizer.recipe.tune else None


def vocabulary_in(plan: Plan, staged: StagedModel, form: Format) -> Vocabulary:
    """Widths of embedding and head as a plan has them.

    Raises:
        InputError: the format has none. ArtifactMismatchError: nor has the model.
    """
    if plan.vocabulary and form is not COMPRESSED_TENSORS:
        raise InputError(
            f"plan: gives {' and '.join(plan.vocabulary)} a width, and {form.name} is written without them",
            "write it with --apply-rounding nearest or gptq",
        )
    return named(staged, plan.vocabulary)


def require_made_for(plan: Plan, staged: StagedModel) -> None:
    """Refuse a plan of another model.

    Raises:
        ArtifactCorruptError, ArtifactMismatchError: saying so.
    """
    missing = [key for key in ("model", "apply_rounding", "players") if key not in plan.settings]
    if missing:
        raise ArtifactCorruptError(f"plan: its settings lack {', '.join(missing)}", "make the plan again")
    if plan.settings["model"] != staged.digest:
        raise ArtifactMismatchError(
            f"plan: made for the model {plan.settings['model'][:12]}, this one is {staged.digest[:12]}",
            "apply it to the checkpoint that it was made for",
        )


def recipe_of(plan: Plan, text: Recipe, rounding: str) -> Recipe:
    """The recipe of a plan's last step: its widths and players, with the text of another recipe."""
    return replace(
        text,
        widths=tuple(width.name for width in plan.costs.widths),
        players=plan.settings["players"],
        untie=bool(plan.settings.get("untied")),
        per_expert=bool(plan.settings.get("per_expert")),
        rounding=rounding,
        apply_rounding=None,
    )


def afforded_bytes(staged: StagedModel, plan: Plan, form: Format, rounding: str) -> int:
    """Bytes of the plan's players in a format.

    Raises:
        BudgetError: more than the plan's budget.
    """
    found = costs_of(staged, plan.costs.players, plan.costs.widths, form, 0).spent(plan.assignment)
    if found > plan.budget_bytes:
        raise BudgetError(
            f"--apply-rounding {rounding}: the plan takes {found:,} bytes in its format, "
            f"{found - plan.budget_bytes:,} more than the {plan.budget_bytes:,} it may spend",
            "make the samples and the plan with the same --apply-rounding, so that its bytes are counted",
        )
    return found
