"""A model set up to be quantized: its players and costs, its texts, its game, and its weights as a plan is written.

Everything that several steps of a run need is made here once: each text is tokenised once, the game is played on one
embedding of its text, full precision is asked once about what scales are tuned on.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from apportion.bits.checkpoint import fixed_bytes
from apportion.bits.game import (
    Assignment,
    Costs,
    MeasuredGame,
    Samples,
    WeightBank,
    costs_of,
    players_of,
    sample,
    widths_by_path,
)
from apportion.bits.game.samples import VALUES, WINDOWS
from apportion.bits.game.spqe import draw_permutations
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import (
    Choice,
    Lesson,
    Rounding,
    full_precision_hidden,
    lesson_of,
    round_all,
    round_plan,
    rounding_named,
    tune,
)
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json, claim_folder, digest_of, plain, require_same
from apportion.core.errors import InputError
from apportion.core.log import AppendLog, read_log
from apportion.core.output import output_folder
from apportion.core.seeds import derived_seed
from apportion.formats import Packed, Width
from apportion.formats.width import require_groups
from apportion.models.mixture import Mixture, read_mixture, shares_of
from apportion.models.staged import StagedModel
from apportion.models.text import Windows, load_calibration, prefix_of, sample_calibration, save_calibration

TOLD = (
    "steps", "before", "after", "looks", "slowed", "learned", "batch", "moved", "own", "execution", "diverged",
)  # fmt: skip


@dataclass(frozen=True)
class PlanWeights:
    """A plan's weights as they are written.

    Attributes:
        packed: by module path. tuned: what tuning did, None where it was not asked for: `asked` and `steps` (after how
            many it was best; 0: none was better than untuned), `before` and `after` (cross-entropy to full precision on
            windows kept aside, nats per token), `looks` (steps and that loss, look by look), `slowed`
            (steps after which it went back and on at slower rates), `learned` (codes and scales, or scales alone and
            why), `batch` (windows at once), `moved` (share of the codes), `own` (windows that the model wrote itself to
            learn from), `execution` (whether steps were recorded, and why not, see `Tuned`), `diverged`
            (the last step, where the loss was not finite there; None where it was).
    """

    packed: Mapping[str, Packed]
    tuned: Json | None = None


class Quantizer:
    """A model and its recipe.

    Args:
        recipe: what is asked; a method's own choices must be in it already (`Recipe.for_method`), what is left open of
            rounding and tuning is taken as nearest, untuned (`Recipe.settled`).
        choice: what the machine affords, where it was asked.

    Attributes:
        work: a folder in which rounding and tuning keep finished pieces, so that a killed run goes on; None keeps none.

    Raises:
        InputError: the recipe cannot be used, or not on this model.
    """

    def __init__(self, staged: StagedModel, tokenizer: Any, recipe: Recipe, choice: Choice | None = None) -> None:
        recipe.check()
        recipe = recipe.settled(choice)
        self.staged, self.tokenizer, self.recipe, self.choice = staged, tokenizer, recipe, choice
        self.work: Path | None = None
        self.rounding: Rounding = rounding_named(recipe.measured)
        self.applied: Rounding = rounding_named(recipe.applied)
        self.costs: Costs = costs_in(staged, recipe, self.applied)
        self.tokenised = 0
        self._rounded: dict[tuple[str, Width], Packed] = {}
        self._teachers: dict[str, Tensor] = {}

    @property
    def parameters(self) -> int:
        """Parameters of the whole file, a tied embedding's counted once."""
        return sum(math.prod(entry.shape) for entry in self.staged.origin.tensors.values())

    # --- texts -------------------------------------------------------------------------------------------------------

    @cached_property
    def mixture(self) -> Mixture:
        """All windows of the calibration files: tokenised once for all that draw from them."""
        recipe = self.recipe
        assert recipe.calibration is not None, "a model that samples its own text has no file"
        self.tokenised += len(shares_of(recipe.calibration))
        return read_mixture(recipe.calibration, self.tokenizer, recipe.window_tokens, recipe.bos)

    def require_text(self) -> None:
        """Refuse a text that cannot be used before any long work.

        Raises:
            InputError: conversations and no chat template, too few windows, no beginning-of-text token to begin with.
        """
        if self.recipe.calibration is None:
            prefix_of(self.tokenizer, self.recipe.bos)
        else:
            self.mixture.draw(self.recipe.windows, self.recipe.seed)

    def chosen(self, count: int) -> Windows:
        """So many windows of the files at random, or sampled by the model itself; the same for the same seed.

        Raises:
            InputError: a text has fewer than its share.
        """
        recipe = self.recipe
        return self.sampled(count, recipe.seed) if recipe.calibration is None else self.mixture.draw(count, recipe.seed)

    def sampled(self, count: int, seed: int) -> Windows:
        """So many windows that the model writes itself."""
        length, bos = self.recipe.window_tokens, self.recipe.bos
        return sample_calibration(self.staged, self.tokenizer, windows=count, window_tokens=length, seed=seed, bos=bos)

    @property
    def bos(self) -> bool:
        """Whether the windows of the calibration text begin with the beginning-of-text token."""
        if self.recipe.calibration is not None:
            return self.mixture.bos
        return self.recipe.bos is not False and self.tokenizer.bos_token_id is not None

    @cached_property
    def rounding_text(self) -> Int[Tensor, "windows tokens"]:
        """The windows that roundings with moments see: read, or sampled, once for all plans."""
        recipe = self.recipe
        if recipe.calibration is None:
            return self.chosen(min(recipe.rounding_windows, recipe.windows)).windows
        return self.chosen(min(recipe.rounding_windows, self.mixture.most)).windows

    @cached_property
    def tuning_text(self) -> Int[Tensor, "windows tokens"]:
        """At most `tune_windows` windows, and at most three quarters of the text: finalists are judged on the rest."""
        recipe = self.recipe
        if recipe.calibration is None:
            return self.rounding_text[: recipe.tune_windows]
        most = self.mixture.most
        count = max(2, len(self.mixture.shares), min(recipe.tune_windows, 3 * most // 4))
        return self.mixture.draw(min(count, most), derived_seed(recipe.seed, "tuning")).windows

    @cached_property
    def lesson(self) -> Lesson:
        """What scales are tuned on, with full precision's answers, once for all plans."""
        recipe = self.recipe
        return lesson_of(self.staged, self.tuning_text, recipe.tune or 0, recipe.seed, codes=recipe.codes)

    # --- the game ----------------------------------------------------------------------------------------------------

    @contextmanager
    def game(self, folder: Path, *, resume: bool = False) -> Iterator[MeasuredGame]:
        """The game on the calibration text, its values kept in a folder as they come: one for a whole run.

        Args:
            resume: continue what is there.

        Raises:
            ArtifactExistsError, ArtifactMismatchError: the folder holds something else.
            NumericError, ModelStructureError: the model cannot be run block by block.
        """
        source = self.staged.source
        with output_folder(folder, "samples", resume=resume, reads=[source] if source else []):
            claim_folder(folder, resume=True, kind="samples")
            text = self.text_for(folder)
            settings = self.settings(text)
            self.staged.verify(text.windows)
            with AppendLog(folder / VALUES, settings, resume=True) as log:
                yield MeasuredGame(self.bank, text, log, settings, partial(self.teacher, text.windows))

    def teacher(self, windows: Int[Tensor, "windows tokens"]) -> Float[Tensor, "windows tokens hidden"] | None:
        """What full precision predicts these windows with, where its predictions are the labels; asked once each."""
        if self.recipe.labels != "predictions":
            return None
        digest = Windows(windows, "").digest
        if digest not in self._teachers:
            self._teachers[digest] = full_precision_hidden(self.staged, windows)
        return self._teachers[digest]

    def forget_teacher(self, windows: Int[Tensor, "windows tokens"]) -> None:
        """Let go of what `teacher` keeps of these windows."""
        self._teachers.pop(Windows(windows, "").digest, None)

    def text_for(self, folder: Path) -> Windows:
        """The windows asked for, kept in the folder; windows sampled by the model itself are sampled once.

        Kept windows without values belong to a run that ended before it measured, perhaps of another text or model:
        they are made anew, so that what is measured later is measured on the text that the values' log names.

        Raises:
            ArtifactMismatchError: kept are windows of another number or length.
        """
        recipe, saved, log = self.recipe, folder / WINDOWS, folder / VALUES
        keep = saved.exists() and log.exists() and bool(read_log(log)[0])
        if keep and recipe.calibration is None:
            found = load_calibration(saved)
            asked: Json = {"windows": recipe.windows, "window_tokens": recipe.window_tokens}
            kept: Json = dict(zip(asked, found.windows.shape, strict=True))
            if not (found.bos is recipe.bos is None):  # both where the run is older than the option
                asked, kept = {**asked, "bos": self.bos}, {**kept, "bos": found.bos}
            require_same(kept, asked, saved)
            return found
        found = self.chosen(recipe.windows)
        if not keep:
            save_calibration(found, saved)
        return found

    def orders(self) -> Int[NDArray[np.int64], "permutations players"]:
        """The permutations asked for; none at all for methods that choose their own assignments."""
        recipe, players = self.recipe, len(self.costs.players)
        if recipe.permutations == 0:
            return np.zeros((0, players), dtype=np.int64)
        return draw_permutations(players, recipe.permutations, recipe.seed, antithetic=recipe.antithetic)

    @cached_property
    def bank(self) -> WeightBank:
        """The rounded weights of every width."""
        return WeightBank(self.staged, self.costs, self.rounded())

    def settings(self, text: Windows) -> Json:
        """What the values depend on, by digest and by name."""
        recipe, placement = self.recipe, self.staged.placement
        return {
            "model": self.staged.digest,
            "calibration": text.digest,
            "calibration_source": Path(text.source).name,
            "widths": [width.name for width in self.costs.widths],
            "players": recipe.kind,
            "untied": recipe.untie,
            **({"per_expert": True} if recipe.per_expert else {}),
            **({"labels": recipe.labels} if recipe.labels == "predictions" else {}),
            "rounding": recipe.measured,
            "apply_rounding": recipe.applied,
            "dtype": placement.dtype,
            "device": placement.device.split(":")[0],
            **({"seed": recipe.seed} if recipe.calibration is None else {}),  # kept windows are not sampled again
            **({"rounding_windows": recipe.rounding_windows} if self.rounding.needs_hessian else {}),
        }

    # --- weights -----------------------------------------------------------------------------------------------------

    def rounded(self) -> Mapping[tuple[str, Width], Packed]:
        """Every linear at every width, rounded once."""
        if not self._rounded:
            windows = self.rounding_text if self.rounding.needs_hessian else None
            self._rounded = round_all(self.staged, self.rounding, self.costs.widths, windows)
        return self._rounded

    @property
    def rewrites(self) -> bool:
        """Whether a plan is written with other weights than it was sampled with."""
        other = self.applied.name != self.rounding.name
        return other or self.rounding.needs_hessian or bool(self.recipe.tune)

    def written(self, assignment: Assignment, *, tuned: bool = True) -> PlanWeights:
        """Each linear's weight as a plan is written.

        By the applied rounding, in sequence where it sees moments, and tuned where that is asked for.

        Args:
            tuned: False leaves the tuning out.
        """
        return self.write(widths_by_path(self.staged, self.costs, assignment), tuned=tuned)

    def write(self, widths: Mapping[str, Width], *, tuned: bool = True) -> PlanWeights:
        """Each linear's weight at its width, by module path; see `written`."""
        if self.applied.name == self.rounding.name and not self.rounding.needs_hessian and self._rounded:
            packed: Mapping[str, Packed] = {path: self._rounded[path, width] for path, width in widths.items()}
        else:
            text = self.rounding_text if self.applied.needs_hessian else None
            packed = round_plan(self.staged, self.applied, widths, text, self.kept_for(widths))
        if not (self.recipe.tune and tuned):
            return PlanWeights(packed)
        found = tune(self.staged, packed, self.lesson, self.kept_for(widths))
        told = {"asked": self.lesson.steps, **{name: getattr(found, name) for name in TOLD}}
        return PlanWeights(found.packed, plain(told))

    def kept_for(self, widths: Mapping[str, Width]) -> Path | None:
        """Where finished pieces of a plan's rounding and tuning are kept."""
        if self.work is None:
            return None
        return self.work / digest_of({path: width.name for path, width in widths.items()})[:12]


def costs_in(staged: StagedModel, recipe: Recipe, applied: Rounding) -> Costs:
    """Players of a model, and what they cost in the format that plans are written in.

    Raises:
        InputError: a group size divides not every linear's columns; all of them are listed. Or there is no linear.
    """
    widths = recipe.grid()
    leave_undivided(staged, widths, strict=recipe.strict)
    if not staged.originals:
        reasons = ", ".join(sorted({reason for _, reason in staged.layout.kept})) or "its blocks hold none"
        raise InputError(
            f"MODEL {staged.source or ''}: has no linear that can be quantized: {reasons}",
            "give a causal language model whose blocks hold linears",
        )
    players = players_of(staged.layout, recipe.kind, untie=recipe.untie, per_expert=recipe.per_expert)
    return costs_of(staged, players, widths, applied.format, fixed_bytes(staged, applied.format, widths))


def leave_undivided(staged: StagedModel, widths: tuple[Width, ...], *, strict: bool) -> None:
    """Leave linears as they are whose columns a width's groups do not divide; the result names them.

    Raises:
        InputError: `strict`, or most of the weights would be left: all of them are listed.
    """
    columns = {path: weight.shape[1] for path, weight in staged.originals.items()}
    for size in dict.fromkeys(width.group_size for width in widths):
        left = [path for path, count in columns.items() if count % size]
        weights = sum(staged.originals[path].numel() for path in left)
        if strict or 2 * weights > sum(weight.numel() for weight in staged.originals.values()):
            require_groups(columns, size)
        staged.keep(left, f"columns that groups of {size} do not divide")
        columns = {path: count for path, count in columns.items() if path not in left}


def take_samples(
    quantizer: Quantizer, folder: Path, *, resume: bool = False, stop: Callable[[Samples], bool] | None = None
) -> Samples:
    """Measure the coalitions of SPQE on a model and save them: one estimation, from which every budget is served.

    Args:
        folder: where values are appended as they come, so that a kill loses only what was in flight.
        resume: continue what is there; a finished folder is read, not measured again.
        stop: asked after every few permutations whether they are enough; all are used if None.

    Returns:
        Samples of `recipe.permutations` random orders of the players.

    Raises:
        ArtifactExistsError: the folder holds something and resume is off. ArtifactMismatchError: it was made from
            another model, text or recipe. NumericError: a loss is not finite. ModelStructureError: the model cannot be
            run block by block.

    Cost: `permutations * players` coalitions, fewer where they share prefixes; one block forward for each edge of
    their trie.

    Source: CoopQ (arXiv 2509.15455), Shapley-based Progressive Quantization Estimation; prefix sharing is ours.

    >>> from apportion import Recipe, open_model
    >>> recipe = Recipe(calibration=TEXT, windows=2, window_tokens=24, group_size=32, permutations=2)
    >>> samples = take_samples(open_model(MODEL, recipe), OUT)
    >>> sorted(samples.values)  # two orders of two blocks: both low, the same one low in both, both high
    [(0, 0), (1, 0), (1, 1)]
    """
    quantizer.require_text()
    with quantizer.game(folder, resume=resume) as game:
        return sample(game, folder, quantizer.orders(), stop=stop)
