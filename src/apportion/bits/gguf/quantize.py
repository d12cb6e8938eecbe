"""The whole way: a model, a text and a number of bytes in; the GGUF file that loses least and its evidence out."""

import time
from collections import Counter
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from apportion.bits.divergence import divergence_of, reference_of, summarize
from apportion.bits.gguf.bank import GgufBank
from apportion.bits.gguf.evidence import PACKAGES, file_record, intact, write_again
from apportion.bits.gguf.importance import IMPORTANCE, save_imatrix
from apportion.bits.gguf.ladders import require_budget
from apportion.bits.gguf.page import page
from apportion.bits.gguf.plan import COSTS, VALUES, FilePlan, find_plan, plan_again, write_file
from apportion.bits.gguf.recipe import FileRequest
from apportion.bits.gguf.workshop import Workshop, open_workshop
from apportion.core.artifact import (
    MANIFEST,
    RUN,
    Json,
    finished,
    plain,
    read_json,
    read_manifest,
    sha256_file,
    start,
    versions,
    write_bytes,
    write_json,
    write_manifest,
)
from apportion.core.errors import ArtifactExistsError, InputError
from apportion.core.log import AppendLog
from apportion.core.output import output_folder
from apportion.core.progress import forecast
from apportion.models.identity import run_identity
from apportion.models.mixture import identity_of

EVIDENCE = ".apportion"  # appended to the file's name
KIND = "quantize gguf"  # of a run, as in its record


def quantize_gguf(model: str, out: Path, request: FileRequest, *, resume: bool = False) -> Json:
    """Write the GGUF file that loses least within a budget.

    Args:
        model: a Hugging Face folder or hub name, or a GGUF file of f16, bf16, f32 or q8_0.
        out: the file to write; its evidence goes to the folder `out` + `.apportion`.
        request: the budget and how much is spent on the search.
        resume: continue an interrupted run; plans that were measured are not measured again. Of a finished run whose
            file is gone or another one, the file is written again.

    Returns:
        What is written as `result.json`: bytes, bits per weight, types, fallbacks, divergence on text kept aside, and
        the seconds of each step.

    Raises:
        InputError: options, architecture, tokenizer or source that cannot be used; by name, before any work.
        BudgetError: below the smallest file, whose composition is told.
        ArtifactError: the disk is full or refuses, nothing half-written is left under the file's name; or a finished
            run's file is gone and its evidence is not whole.

    Cost: encoding every matrix in every type of its ladder; `sequences` backward passes; `evaluations` forward passes
    (less what plans share).

    Example:
        >>> small = {"windows": 2, "judged_windows": 2, "importance_windows": 4, "sequences": 4, "evaluations": 6}
        >>> request = FileRequest(bits_per_weight=10, calibration=TEXT, window_tokens=32, device="cpu", **small)
        >>> result = quantize_gguf(MODEL, OUT / "model.gguf", request)
        >>> result["bytes"] == (OUT / "model.gguf").stat().st_size <= result["max_bytes"]
        True
    """
    request.check()
    folder = require_out(model, out)
    asked = {"kind": KIND, "model_source": model, **plain(request)}
    if request.reuse is not None and (request.reuse / MANIFEST).exists():
        asked["reused"] = sha256_file(request.reuse / MANIFEST)
    with output_folder(folder, KIND, resume=resume, reads=[model]):
        asked |= {"model": run_identity(model, folder), "text": identity_of(request.calibration)}
        if finished(folder, asked, resume=resume, raisable=("evaluations",)):
            if not intact(folder, out):
                write_again(folder, model, out, request)
            return {**read_json(folder / "result.json"), "out": str(out)}
        with forecast():
            return quantize_into(folder, model, out, request, asked, resume=resume)


def quantize_into(folder: Path, model: str, out: Path, request: FileRequest, asked: Json, *, resume: bool) -> Json:
    """The work of `quantize_gguf`, in a folder of evidence that is held for it."""
    clock = Clock()
    if request.reuse is not None:
        read_manifest(request.reuse)
    shop = open_workshop(model, request)
    max_bytes = request.budget(shop.weights)
    require_budget(shop.ladders, max_bytes)
    clock.mark("loading")
    shop.text  # noqa: B018 - a text that cannot be used is refused before the folder is claimed
    start(folder, asked)
    plan, search = found_plan(shop, max_bytes, folder, clock, resume=resume)
    write_json(folder / "plan.json", plan)
    size = write_file(shop, plan, out)
    clock.mark("writing")
    divergence = judged(shop.bank, plan, shop.text.judged)
    clock.mark("judging")
    result = {**described(shop, plan, search, size), "divergence": divergence, "seconds": clock.seconds}
    return finish(folder, out, shop, result)


class Clock:
    """Seconds of each step of a run, one after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def mark(self, step: str) -> None:
        """A step ends here."""
        now = time.monotonic()
        self.seconds[step] = now - self._last
        self._last = now


def found_plan(shop: Workshop, max_bytes: int, folder: Path, clock: Clock, *, resume: bool) -> tuple[FilePlan, Json]:
    """The plan, and what is to be said of how it was found; what was measured is saved as it comes."""
    request, ladders = shop.request, shop.ladders
    if request.reuse is not None:
        plan, measured_on = plan_again(shop, max_bytes, request.reuse)
        clock.mark("search")
        shop.only(plan.types)
        assert shop.bank.ladders is ladders
        clock.mark("encoding")
        aside = measured_on == shop.text.measured.digest
        return plan, {"evaluations": 0, "misfit": None, "reused": request.reuse.resolve().name, "aside": aside}
    header = {"model": shop.staged.digest, "text": shop.text.measured.digest, "types": list(request.types)}
    with AppendLog(folder / VALUES, header, resume=resume) as log:
        save_imatrix(folder / IMPORTANCE, shop.importance, Path(shop.text.measured.source).name)
        clock.mark("importance")
        assert shop.bank.ladders is ladders
        clock.mark("encoding")
        fisher = shop.fisher
        write_json(folder / COSTS, {"tensors": ladders.names, "types": ladders.types, **plain(fisher)})
        clock.mark("costs alone")
        plan, state = find_plan(shop, max_bytes, log)
        clock.mark("search")
    return plan, {"evaluations": len(state.seen), "misfit": state.misfit, "costs_error": fisher.error}


def require_out(model: str, out: Path) -> Path:
    """The evidence's folder; refuses a file that is there and names that no one would recognise.

    Raises:
        InputError: another suffix. ArtifactExistsError: the file exists and has no evidence beside it, or is read.
    """
    if out.suffix != ".gguf":
        raise InputError(
            f"--out {out}: expected a file name that ends in .gguf", f"e.g. --out {out.with_suffix('.gguf')}"
        )
    folder = out.with_name(out.name + EVIDENCE)
    if out.exists() and (not folder.exists() or Path(model).resolve() == out.resolve()):
        raise ArtifactExistsError(f"--out {out}: exists", "choose another --out")
    return folder


def judged(bank: GgufBank, plan: FilePlan, windows: Int[Tensor, "windows tokens"]) -> Json:
    """Divergence of the written weights on the windows that `judged_on` tells."""
    bank.restore()
    bank.staged.forget_texts()
    reference = reference_of(bank.staged, windows, bank.original_logits)
    with bank.in_place(plan.assignment):
        found: Json = plain(summarize(divergence_of(reference, bank.staged)))
    return found


def judged_on(windows: int, *, aside: bool) -> str:
    """What the divergence was measured on.

    Args:
        aside: whether the windows are those that were kept aside when the plan's costs were measured: a run that is
            reused may have had others of the same text (another --seed, --window-tokens or --plan-tokens).

    >>> judged_on(8, aside=True)
    '8 windows of the calibration text that nothing was chosen on'
    """
    seen = "that nothing was chosen on" if aside else "of which the run that is reused may have chosen on some"
    return f"{windows} windows of the calibration text {seen}"


def described(shop: Workshop, plan: FilePlan, search: Json, size: int) -> Json:
    """The result, but for what was measured of the written weights."""
    counted: Counter[str] = Counter(plan.types[name] for name in shop.ladders.names)
    return {
        "bytes": size,
        "max_bytes": plan.max_bytes,
        "weights": shop.weights,
        "bits_per_weight": 8 * size / shop.weights,
        "types": dict(counted),
        "fallbacks": {name: own for name, own in shop.ladders.fallbacks.items() if own},
        "unquantized_matrices": [name for name in shop.ladders.fixed if len(shop.source.shapes[name]) == 2],
        "kl_predicted": plan.predicted,
        "kl_measured": plan.measured,
        "source": plan.source,
        "finalists": [
            {key: value for key, value in row.items() if key != "assignment"} for row in plain(plan.finalists)
        ],
        "finals_apart": shop.text.apart,
        "costs_error": search.get("costs_error"),
        "evaluations": search["evaluations"],
        "misfit": search["misfit"],
        "reused": search.get("reused"),
        "judged_on": judged_on(len(shop.text.judged), aside=search.get("aside", True)),
        "calibration": Path(shop.text.measured.source).name,
        "bos": shop.text.measured.bos,
        "plan_digest": plan.digest,
    }


def finish(folder: Path, out: Path, shop: Workshop, result: Json) -> Json:
    """Result, page and, last, the manifest."""
    result = plain(result)
    write_json(folder / "result.json", result)
    write_bytes(folder / "report.md", page(result, read_json(folder / "plan.json")).encode())
    placement = shop.staged.placement
    about = {
        "kind": "gguf file",
        "model": shop.staged.digest,
        "placement": placement,
        "versions": versions(*PACKAGES),
        "file": file_record(out),
    }
    measured = [] if shop.request.reuse else [VALUES, COSTS, IMPORTANCE]
    write_manifest(folder, about, [RUN, *measured, "plan.json", "result.json", "report.md"])
    return {**result, "out": str(out)}
