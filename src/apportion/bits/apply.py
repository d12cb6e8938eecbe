"""The last step alone: round a model as a plan says and write the checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from apportion.bits.checkpoint import require_fusable, widths_by_path, write_checkpoint
from apportion.bits.game.bank import player_bytes, round_plan
from apportion.bits.plan.plan import Plan
from apportion.bits.quantizer import PlanWeights, rounding_text, tuned_weights, tuning_text
from apportion.bits.recipe import Sampling, applied_named
from apportion.bits.rounding import Rounding
from apportion.bits.rounding.tuning import lesson_of, require_tunable, require_windows
from apportion.core.artifact import (
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
from apportion.core.errors import ArtifactCorruptError, ArtifactMismatchError, BudgetError
from apportion.core.output import output_folder
from apportion.formats.width import require_bits
from apportion.models.staged import StagedModel
from apportion.models.text import Windows

PACKAGES = ("torch", "transformers", "compressed-tensors", "optimum-quanto", "hqq", "pyscipopt", "numpy")


def apply(
    staged: StagedModel,
    tokenizer: Any,
    plan: Plan,
    out: Path,
    *,
    resume: bool = False,
    rounding: str | None = None,
    sampling: Sampling | None = None,
) -> Json:
    """Round a model as a plan says and write the checkpoint: the last step alone.

    Args:
        resume: a complete folder of the same plan, rounding and text is read, an unfinished one written again.
        rounding: the rounding to write with; the plan's own if None.
        sampling: where a rounding that needs moments (gptq) takes its text from; `tune` and its text.

    Raises:
        ArtifactMismatchError: the plan was made for another model, or the folder from something else.
        ArtifactCorruptError: the plan does not say what it was made for.
        BudgetError: in this rounding's format the plan takes more bytes than it may.
        InputError: the plan gives linears that servers fuse other widths, and the format is for servers.
    """
    with output_folder(out, "apply", resume=resume, reads=[staged.source] if staged.source else []):
        return write_plan(
            staged, tokenizer, plan, out, resume=resume, rounding=rounding, sampling=sampling or Sampling()
        )


def write_plan(
    staged: StagedModel,
    tokenizer: Any,
    plan: Plan,
    out: Path,
    *,
    resume: bool,
    rounding: str | None,
    sampling: Sampling,
) -> Json:
    """The work of `apply`, in a folder that is held for it."""
    missing = [key for key in ("model", "apply_rounding", "group_size") if key not in plan.settings]
    if missing:
        raise ArtifactCorruptError(f"plan: its settings lack {', '.join(missing)}", "make the plan again")
    if plan.settings["model"] != staged.digest:
        raise ArtifactMismatchError(
            f"plan: made for the model {plan.settings['model'][:12]}, this one is {staged.digest[:12]}",
            "apply it to the checkpoint that it was made for",
        )
    backend = applied_named(rounding or plan.settings["apply_rounding"])
    group_size = plan.settings["group_size"]
    require_bits(plan.widths, backend.bits, backend.name)
    require_fusable(widths_by_path(staged, plan.players, plan.assignment), backend)
    sampling.check()
    player_bytes = afforded_bytes(staged, plan, backend, group_size)
    require_tunable(backend.name, backend.format, sampling.tune)
    text = rounding_text(staged, tokenizer, sampling) if backend.needs_hessian else None
    taught = None
    if sampling.tune:
        # the model's own text is sampled once for both
        own = (lambda: rounding_text(staged, tokenizer, sampling)) if text is None else (lambda: text)
        taught = tuning_text(tokenizer, sampling, own)
        require_windows(taught)
    asked = {
        "kind": "apply",
        "plan": digest_of(plan),
        "model": staged.digest,
        "apply_rounding": backend.name,
        "text": Windows(text, "").digest if text is not None else None,
        "tune": [sampling.tune, Windows(taught, "").digest] if taught is not None else None,
    }
    if finished(out, asked, resume=resume):
        return dict(read_manifest(out)["result"])
    start(out, asked)
    plan = replace(plan, player_bytes=player_bytes)
    widths = widths_by_path(staged, plan.players, plan.assignment)
    weights = PlanWeights(round_plan(staged, backend, widths, group_size, text))
    if taught is not None:
        lesson = lesson_of(staged, taught, sampling.tune, sampling.seed)
        weights = tuned_weights(staged, weights.rounded, lesson)
    weight_bytes, files = write_checkpoint(out, staged, plan, weights.rounded, group_size, tokenizer, backend.format)
    plan = replace(plan, total_bytes=weight_bytes)
    write_json(out / "plan.json", plan)
    result = {
        "avg_bits": plan.avg_bits,
        "bytes": weight_bytes,
        "rounding": plan.settings["rounding"],
        "apply_rounding": backend.name,
        "format": backend.format,
        "tuned": weights.tuned,
        "plan": plan.by_name(),
        "out": str(out),
    }
    write_manifest(
        out,
        {"kind": "quantized checkpoint", "model": staged.digest, "versions": versions(*PACKAGES), "result": result},
        [*files, RUN, "plan.json"],
    )
    return result


def afforded_bytes(staged: StagedModel, plan: Plan, rounding: Rounding, group_size: int) -> int:
    """Bytes of the plan's players in a rounding's format.

    Raises:
        BudgetError: more than the plan's budget.
    """
    pairs = zip(plan.players, plan.assignment, strict=True)
    found = sum(player_bytes(staged, player, rounding, bits, group_size) for player, bits in pairs)
    if found > plan.budget_bytes:
        raise BudgetError(
            f"--apply-rounding {rounding.name}: the plan takes {found:,} bytes in its format, "
            f"{found - plan.budget_bytes:,} more than the {plan.budget_bytes:,} it may spend",
            "make the samples and the plan with the same --apply-rounding, so that its bytes are counted",
        )
    return found
