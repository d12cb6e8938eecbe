"""A model set up for its file: source, text, importance, encoded matrices, costs alone; each made once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from apportion.bits.game import Assignment
from apportion.bits.gguf.bank import GgufBank, encode_all
from apportion.bits.gguf.fisher import Fisher, fisher_costs
from apportion.bits.gguf.game import FileGame
from apportion.bits.gguf.importance import IMPORTANCE, input_squares, load_imatrix
from apportion.bits.gguf.ladders import Ladders, ladders_of
from apportion.bits.gguf.mixes import fitting_mix
from apportion.bits.gguf.recipe import FileRequest
from apportion.bits.gguf.search import falling
from apportion.bits.plan.search import spend_slack
from apportion.core.artifact import versions
from apportion.core.device import Placement, place
from apportion.core.errors import InputError
from apportion.core.log import AppendLog
from apportion.core.seeds import derived_seed, stream
from apportion.formats.gguf_file import Field
from apportion.models.gguf.load import is_gguf, load_gguf_tokenizer, staged_file
from apportion.models.gguf.source import Source, file_source, folder_source
from apportion.models.load import load_full
from apportion.models.mixture import read_mixture, spread
from apportion.models.staged import StagedModel
from apportion.models.text import Windows, sample_calibration

DIGEST = "apportion.plan_digest"
FINALS = 2  # times the windows that plans are measured on
QUANTIZATION_VERSION = 2  # of ggml's block layouts
FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17,
              "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ4_NL": 25, "IQ3_S": 26, "IQ2_S": 28,
              "IQ4_XS": 30}  # fmt: skip
"""`general.file_type` of a file that has mostly one type: what programs show beside its name."""


@dataclass(frozen=True)
class Text:
    """Windows for each use; no window serves two, as far as there are enough.

    Attributes:
        measured: plans are measured on these. finals: the best few of them meet on these.
        importance, costs: behind the importance and the costs alone.
        judged: kept aside for the figures that are reported.
        apart: whether the search saw none of the finals' windows; a short text has too few for both.
    """

    measured: Windows
    finals: Windows
    importance: Int[Tensor, "windows tokens"]
    costs: Int[Tensor, "sequences tokens"]
    judged: Int[Tensor, "judged tokens"]
    apart: bool = True


@dataclass
class Workshop:
    """Everything about a model that does not depend on the budget."""

    staged: StagedModel
    tokenizer: Any
    source: Source
    request: FileRequest
    _only: Mapping[str, str] | None = None

    def only(self, types: Mapping[str, str]) -> None:
        """Encode every matrix in this type alone."""
        assert "bank" not in self.__dict__, "all types are encoded already"
        self._only = types

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The file's metadata, of its final size; type and digest are filled in when the plan is known."""
        own = versions()
        return {
            **self.source.fields,
            "general.quantization_version": Field("UINT32", QUANTIZATION_VERSION),
            "general.file_type": Field("UINT32", 0),
            "apportion.version": Field("STRING", own["apportion"]),
            "apportion.model_digest": Field("STRING", self.staged.digest),
            DIGEST: Field("STRING", "0" * 64),
        }

    @cached_property
    def weights(self) -> int:
        """How many weights the file holds."""
        return sum(math.prod(shape) for shape in self.source.shapes.values())

    @cached_property
    def ladders(self) -> Ladders:
        """Players, their types and what those take."""
        shapes = self.source.shapes
        choosable = [name for name, path in self.source.modules.items() if len(shapes[name]) == 2]
        unweighted = set(choosable) - set(self.weighed)
        return ladders_of(shapes, choosable, self.request.types, self.fields, unweighted)

    @cached_property
    def weighed(self) -> dict[str, str]:
        """Module path of the linear whose inputs each matrix is multiplied with; an untied embedding has none."""
        head = self.staged.layout.head
        paths = {name: path for name, path in self.source.modules.items() if path in {*self.staged.originals, head}}
        if "output.weight" not in self.source.modules:
            paths["token_embd.weight"] = head  # tied: it multiplies what the head is given
        return paths

    @cached_property
    def text(self) -> Text:
        """Windows for each use."""
        return text_of(self.staged, self.tokenizer, self.request)

    @cached_property
    def importance(self) -> Mapping[str, Tensor]:
        """E[x^2] of every column, by GGUF name."""
        if self.request.reuse is not None:
            return load_imatrix(self.request.reuse / IMPORTANCE)
        found = input_squares(self.staged, self.text.importance)
        return {name: found[path] for name, path in self.weighed.items()}

    @cached_property
    def bank(self) -> GgufBank:
        """Every matrix in every type of its ladder."""
        encoded, seconds = encode_all(self.source, self.ladders, self.importance, self.request.threads, self._only)
        bank = GgufBank(self.staged, self.source, self.ladders, encoded, seconds)
        bank.decode_all(self.request.threads)
        return bank

    @cached_property
    def fisher(self) -> Fisher:
        """Costs of every type of every matrix alone."""
        ask = self.request
        return fisher_costs(
            self.bank, self.text.costs, sequences=ask.sequences, tokens=ask.sequence_tokens,
            seed=derived_seed(ask.seed, "fisher") % (1 << 63),
        )  # fmt: skip

    def game(self, log: AppendLog | None = None) -> FileGame:
        """The game on the measured text."""
        return FileGame(self.bank, self.text.measured, log)

    def rivals(self, budget_bytes: int) -> dict[Assignment, str]:
        """The largest standard mix within a budget, with what is left spent by the costs; and its name.

        Args:
            budget_bytes: for the players' tensors.
        """
        columns = {name: self.source.shapes[name][1] for name in self.ladders.names}
        prefix = f"{self.fields['general.architecture'].value}.attention.head_count"
        own = self.fields[prefix]
        heads = int(own.value) // int(self.fields.get(f"{prefix}_kv", own).value)
        found = fitting_mix(self.ladders, columns, heads, budget_bytes)
        if found is None:
            return {}
        mix, plan = found
        costs = self.ladders.costs
        filled = spend_slack(np.asarray(plan), falling(self.fisher.costs), costs.bytes.astype(np.float64), budget_bytes)
        return {tuple(filled.tolist()): f"standard mix {mix}"}


def open_workshop(model: str, request: FileRequest, placement: Placement | None = None) -> Workshop:
    """Load a model, refusing what cannot be converted before any work.

    Args:
        model: a Hugging Face folder or hub name, or a GGUF file of high precision.
    """
    request.check()
    placement = placement or place(request.device, request.dtype)
    if is_gguf(model):
        source = file_source(Path(model), allow_requantize=request.allow_requantize)
        return Workshop(staged_file(source.file, placement), load_gguf_tokenizer(Path(model)), source, request)
    staged, tokenizer = load_full(model, placement, trust_remote_code=request.trust_remote_code)
    return Workshop(staged, tokenizer, folder_source(staged, tokenizer, model), request)


def text_of(staged: StagedModel, tokenizer: Any, request: FileRequest) -> Text:
    """Windows of the calibration files at random, by their shares, or sampled from the model itself.

    Raises:
        InputError: the text has too few windows to keep any aside.
    """
    length, seed = request.window_tokens, request.seed
    per_window = max(1, length // min(request.sequence_tokens, length))
    cost_windows = -(-request.sequences // per_window)
    finals = FINALS * request.windows
    wanted = (request.judged_windows, request.windows, finals, request.importance_windows, cost_windows)
    if request.calibration is None:
        whole = sample_calibration(
            staged,
            tokenizer,
            windows=request.judged_windows + request.windows + finals,
            window_tokens=length,
            seed=seed,
            bos=request.bos,
        )
        counts = [len(whole.windows)]
    else:
        mixture = read_mixture(request.calibration, tokenizer, length, request.bos)
        whole, counts = mixture.draw(mixture.most, seed), mixture.counts(mixture.most)
    available, source = whole.windows, whole.source
    if len(available) < request.judged_windows + request.windows:
        raise InputError(
            f"--calibration {source}: {len(available)} windows of {length} tokens, expected at least "
            f"{request.judged_windows + request.windows} ({request.judged_windows} to judge on, {request.windows} to "
            "measure on)",
            "give a longer text, fewer --plan-tokens or smaller --window-tokens",
        )
    order = spread(counts, stream(seed, "file text"))
    judged, rest = order[: wanted[0]], order[wanted[0] :]
    parts = []
    start = 0
    for count in wanted[1:]:
        parts.append([rest[(start + i) % len(rest)] for i in range(min(count, len(rest)))])
        start += count
    measured, last, importance, costs = (available[sorted(part)].contiguous() for part in parts)
    return Text(
        measured=Windows(measured, source, whole.bos),
        finals=Windows(last, source, whole.bos),
        importance=importance,
        costs=costs,
        judged=available[sorted(judged)].contiguous(),
        apart=len(rest) >= request.windows + finals,
    )
