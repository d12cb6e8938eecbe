"""The whole way: a model, a text and a number of bytes in; the GGUF file that loses least and its evidence out."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch import Tensor

from apportion.bits.divergence import divergence_of, reference_of, summarize
from apportion.bits.game import Assignment
from apportion.bits.gguf.bank import GgufBank
from apportion.bits.gguf.ladders import require_budget
from apportion.bits.gguf.page import page
from apportion.bits.gguf.recipe import FileRequest
from apportion.bits.gguf.search import FileSearch, search_file
from apportion.bits.gguf.workshop import DIGEST, FILE_TYPES, Workshop, open_workshop
from apportion.core.artifact import (
    RUN,
    Json,
    digest_of,
    finished,
    plain,
    read_json,
    start,
    versions,
    write_bytes,
    write_json,
    write_manifest,
)
from apportion.core.errors import ArtifactExistsError, InputError
from apportion.core.log import AppendLog
from apportion.core.output import output_folder
from apportion.formats.ggml import PLAIN
from apportion.formats.gguf_file import Field, file_bytes, write
from apportion.models.identity import source_identity, text_identity

VALUES = "plans.log"
EVIDENCE = ".apportion"  # appended to the file's name
KIND = "quantize gguf"  # of a run, as in its record


@dataclass(frozen=True)
class FilePlan:
    """A type for every tensor of a file.

    Attributes:
        types: by GGUF name. total_bytes: of the file, exact. predicted, measured: mean KL on the measured text, nats
            per token; costs alone, and as it was measured. source: the step of the search that proposed it.
    """

    assignment: Assignment
    types: Mapping[str, str]
    total_bytes: int
    max_bytes: int
    predicted: float
    measured: float
    source: str

    @property
    def digest(self) -> str:
        """SHA-256 of the types by name."""
        return digest_of(dict(self.types))


def quantize_gguf(model: str, out: Path, request: FileRequest, *, resume: bool = False) -> Json:
    """Write the GGUF file that loses least within a budget.

    Args:
        model: a Hugging Face folder or hub name, or a GGUF file of f16, bf16, f32 or q8_0.
        out: the file to write; its evidence goes to the folder `out` + `.apportion`.
        request: the budget and how much is spent on the search.
        resume: continue an interrupted run; plans that were measured are not measured again.

    Returns:
        What is written as `result.json`: bytes, bits per weight, types, fallbacks, divergence on text kept aside, and
        the seconds of each step.

    Raises:
        InputError: options, architecture, tokenizer or source that cannot be used; by name, before any work.
        BudgetError: below the smallest file, whose composition is told.
        ArtifactError: the disk is full or refuses; nothing half-written is left under the file's name.

    Cost: encoding every matrix in every type of its ladder; `sequences` backward passes; `evaluations` forward passes
    (less what plans share).
    """
    request.check()
    folder = require_out(model, out)
    asked = {"kind": KIND, "model_source": model, **plain(request)}
    asked |= {"model": source_identity(model), "text": text_identity(request.calibration)}
    with output_folder(folder, KIND, resume=resume, reads=[model]):
        if finished(folder, asked, resume=resume):
            return read_json(folder / "result.json")
        return quantize_into(folder, model, out, request, asked, resume=resume)


def quantize_into(folder: Path, model: str, out: Path, request: FileRequest, asked: Json, *, resume: bool) -> Json:
    """The work of `quantize_gguf`, in a folder of evidence that is held for it."""
    began = time.monotonic()
    shop = open_workshop(model, request)
    max_bytes = request.budget(sum(int(np.prod(shape)) for shape in shop.source.shapes.values()))
    require_budget(shop.ladders, max_bytes)
    start(folder, asked)
    loaded = time.monotonic()
    header = {"model": shop.staged.digest, "text": shop.text.measured.digest, "types": list(request.types)}
    with AppendLog(folder / VALUES, header, resume=resume) as log:
        bank, fisher = shop.bank, shop.fisher
        ready = time.monotonic()
        plan, state = find_plan(shop, max_bytes, log)
    searched = time.monotonic()
    size = write_file(shop, plan, out)
    seconds = {
        "loading": loaded - began,
        "encoding": bank.seconds,
        "costs alone": ready - loaded - bank.seconds,
        "search": searched - ready,
        "writing": time.monotonic() - searched,
    }
    result = described(shop, plan, state, size, seconds)
    write_json(folder / "plan.json", plan)
    write_json(folder / "costs.json", {"tensors": shop.ladders.names, "types": shop.ladders.types, **plain(fisher)})
    return finish(folder, out, shop, result)


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


def find_plan(shop: Workshop, max_bytes: int, log: AppendLog | None = None) -> tuple[FilePlan, FileSearch]:
    """Search, and say what was found."""
    ladders, request = shop.ladders, shop.request
    budget = min(max_bytes, ladders.costs.largest()) - ladders.costs.fixed_bytes
    state = search_file(
        shop.game(log), ladders.costs, shop.fisher.costs, budget, evaluations=request.evaluations, seed=request.seed
    )
    return plan_of(shop, state, max_bytes), state


def plan_of(shop: Workshop, state: FileSearch, max_bytes: int) -> FilePlan:
    """The best plan that was measured."""
    best = state.best
    predicted = float(state.prior[np.arange(len(best)), list(best)].sum())
    entries = shop.ladders.entries(shop.source.shapes, best)
    types = {name: entry.type for name, entry in entries.items()}
    total = file_bytes(shop.fields, entries)
    assert total == state.costs.spent(best) + state.costs.fixed_bytes <= max_bytes, (
        "the plan's bytes are not the file's"
    )
    return FilePlan(best, types, total, max_bytes, predicted, state.seen[best], state.sources[best])


def write_file(shop: Workshop, plan: FilePlan, out: Path) -> int:
    """Write the file of a plan; returns its bytes."""
    entries = shop.ladders.entries(shop.source.shapes, plan.assignment)
    weights = dict(zip(shop.ladders.names, shop.ladders.costs.parameters.tolist(), strict=True))
    share: Counter[str] = Counter()
    for name, count in weights.items():
        share[plan.types[name]] += count
    most = share.most_common(1)[0][0] if share else "F16"
    fields = {
        **shop.fields,
        "general.file_type": Field("UINT32", FILE_TYPES.get(most, 1)),
        DIGEST: Field("STRING", plan.digest),
    }

    def data(name: str) -> bytes:
        kind = plan.types[name]
        if (name, kind) in shop.bank.encoded:
            return shop.bank.encoded[name, kind].stored.numpy().tobytes()
        return shop.source.weight(name).to(PLAIN[kind]).contiguous().numpy().tobytes()

    size = write(out, fields, entries, data)
    assert size == plan.total_bytes, "the file has another size than its plan"
    return size


def judged(bank: GgufBank, plan: FilePlan, windows: Int[Tensor, "windows tokens"]) -> Json:
    """Divergence of the written weights on text that nothing was chosen on."""
    bank.restore()
    bank.staged.forget_texts()
    reference = reference_of(bank.staged, windows, bank.original_logits)
    with bank.in_place(plan.assignment):
        found: Json = plain(summarize(divergence_of(reference, bank.staged)))
    return found


def described(shop: Workshop, plan: FilePlan, state: FileSearch, size: int, seconds: Mapping[str, float]) -> Json:
    """The result."""
    weights = sum(int(np.prod(shape)) for shape in shop.source.shapes.values())
    counted: Counter[str] = Counter(plan.types[name] for name in shop.ladders.names)
    return {
        "bytes": size,
        "max_bytes": plan.max_bytes,
        "weights": weights,
        "bits_per_weight": 8 * size / weights,
        "types": dict(counted),
        "fallbacks": {name: own for name, own in shop.ladders.fallbacks.items() if own},
        "unquantized_matrices": [name for name in shop.ladders.fixed if len(shop.source.shapes[name]) == 2],
        "kl_predicted": plan.predicted,
        "kl_measured": plan.measured,
        "source": plan.source,
        "evaluations": len(state.seen),
        "misfit": state.misfit,
        "divergence": judged(shop.bank, plan, shop.text.judged),
        "judged_on": f"{len(shop.text.judged)} windows of the calibration text that nothing was chosen on",
        "calibration": Path(shop.text.measured.source).name,
        "seconds": dict(seconds),
        "plan_digest": plan.digest,
    }


def finish(folder: Path, out: Path, shop: Workshop, result: Json) -> Json:
    """Result, page and, last, the manifest."""
    result = plain({**result, "out": str(out)})
    write_json(folder / "result.json", result)
    write_bytes(folder / "report.md", page(result, read_json(folder / "plan.json")).encode())
    placement = shop.staged.placement
    about = {
        "kind": "gguf file",
        "model": shop.staged.digest,
        "placement": {"device": placement.device, "dtype": placement.dtype, "reason": placement.reason},
        "versions": versions("torch", "transformers", "gguf", "libggml-python"),
    }
    write_manifest(folder, about, [RUN, VALUES, "plan.json", "costs.json", "result.json", "report.md"])
    return result
