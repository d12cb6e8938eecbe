"""A plan for a file: a type for every tensor. Found by measuring, or from what another run measured; and written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apportion.bits.game import Assignment, decode
from apportion.bits.gguf.finals import Finalist, judged
from apportion.bits.gguf.game import FileGame
from apportion.bits.gguf.search import FileSearch, search_file
from apportion.bits.gguf.workshop import DIGEST, FILE_TYPES, Workshop
from apportion.bits.plan import budget_from_bytes
from apportion.bits.plan.search import relaxed
from apportion.core.artifact import digest_of, plain, read_json, read_manifest
from apportion.core.errors import ArtifactError, ArtifactMismatchError
from apportion.core.log import AppendLog, read_log
from apportion.formats.ggml import PLAIN
from apportion.formats.gguf_file import Field, file_bytes
from apportion.models.gguf.written import write_readable

VALUES, COSTS = "plans.log", "costs.json"


@dataclass(frozen=True)
class FilePlan:
    """A type for every tensor of a file.

    Attributes:
        types: by GGUF name. total_bytes: of the file, exact. predicted, measured: mean KL on the measured text, nats
            per token; by the costs, and as it was measured (None where it was not). source: the step of the search
            that proposed it, or `costs of another run`, or `measured by another run`. finalists: the plans of the last
            choice, the best first; this is the first of them.
    """

    assignment: Assignment
    types: Mapping[str, str]
    total_bytes: int
    max_bytes: int
    predicted: float
    measured: float | None
    source: str
    finalists: tuple[Finalist, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the types by name."""
        return digest_of(dict(self.types))


def find_plan(shop: Workshop, max_bytes: int, log: AppendLog | None = None) -> tuple[FilePlan, FileSearch]:
    """Search, choose among the best on other text, and say what was found."""
    ladders, request = shop.ladders, shop.request
    budget = budget_from_bytes(ladders.costs, max_bytes).player_bytes
    state = search_file(
        shop.game(log), ladders.costs, shop.fisher.costs, budget, evaluations=request.evaluations, seed=request.seed,
        rivals=shop.rivals(budget),
    )  # fmt: skip
    met = judged(state, FileGame(shop.bank, shop.text.finals))
    plan = described_plan(shop, state, met[0].assignment, max_bytes, met[0].source)
    return replace(plan, finalists=tuple(met)), state


def plan_again(shop: Workshop, max_bytes: int, folder: Path) -> tuple[FilePlan, str | None]:
    """The plan for another budget by what another run measured: its costs alone, corrected by its plans; or the best of
    those plans that fits, where it was measured to be better.

    Args:
        folder: the evidence of that run, of the same model and types.

    Returns:
        The plan, and the digest of the windows that the other run measured on.

    Raises:
        ArtifactError: not complete, or it measured nothing. ArtifactMismatchError: another model, or other types.
    """
    manifest = read_manifest(folder)
    if COSTS not in manifest["files"]:
        first = read_json(folder / "result.json").get("reused")
        raise ArtifactError(f"--reuse {folder}: measured nothing, it reused {first} itself", "reuse that one")
    saved = read_json(folder / COSTS)
    ladders = shop.ladders
    own = {"model": shop.staged.digest, "tensors": plain(ladders.names), "types": plain(ladders.types)}
    theirs = {"model": manifest["model"], "tensors": saved["tensors"], "types": saved["types"]}
    if differing := [name for name, value in own.items() if theirs[name] != value]:
        raise ArtifactMismatchError(
            f"--reuse {folder}: was made of another {', '.join(differing)}",
            "measure this model, or use the same --types",
        )
    budget = budget_from_bytes(ladders.costs, max_bytes).player_bytes
    state = FileSearch(None, ladders.costs, budget, np.asarray(saved["costs"]), limit=0, seed=0)
    header, records, _ = read_log(folder / VALUES)
    for record in records:
        state.seen[decode(record["assignment"])] = float(np.mean(record["kl"]))
    state.learn()
    best = relaxed(state.table, ladders.costs.bytes, budget)
    plan = described_plan(shop, state, best, max_bytes, "costs of another run")
    expected = plan.predicted if plan.measured is None else plan.measured
    if state.ranked and state.seen[state.best] < expected:
        plan = described_plan(shop, state, state.best, max_bytes, "measured by another run")
    return plan, header.get("text")


def described_plan(shop: Workshop, state: FileSearch, best: Assignment, max_bytes: int, source: str) -> FilePlan:
    """A plan with its types and its exact bytes."""
    predicted = float(state.table[np.arange(len(best)), list(best)].sum())
    entries = shop.ladders.entries(shop.source.shapes, best)
    types = {name: entry.type for name, entry in entries.items()}
    total = file_bytes(shop.fields, entries)
    assert total == state.costs.spent(best) + state.costs.fixed_bytes <= max_bytes, (
        "the plan's bytes are not the file's"
    )
    return FilePlan(best, types, total, max_bytes, predicted, state.seen.get(best), source)


def write_file(shop: Workshop, plan: FilePlan, out: Path) -> int:
    """Write the file of a plan, read again before it gets its name; returns its bytes."""
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

    size = write_readable(out, fields, entries, data)
    assert size == plan.total_bytes, "the file has another size than its plan"
    return size
