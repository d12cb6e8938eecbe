"""What is asked of a quantization: everything that measured values and written weights depend on, besides the model."""

from dataclasses import asdict, dataclass, replace

from apportion.bits.game.players import require_kind
from apportion.bits.rounding import ROUNDINGS, Choice, Rounding, require_tunable, rounding_named
from apportion.core.artifact import Json
from apportion.core.errors import InputError, at_least, require_all
from apportion.formats import COMPRESSED_TENSORS, Width, rising, width_named
from apportion.formats.width import require_bits
from apportion.models.mixture import Calibration, checks_of

BLOCKS = (2, 4)  # the paper's widths, for blocks
LINEARS = (2, 3, 4)  # of `--method auto`, for linears
LABELS = ("text", "predictions")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the measured values depend on, besides the model.

    Attributes:
        widths: what players may have: bits of a grid with `group_size`, or names (`w3g128`). None: 2, 3 and 4 bits for
            linears, 2 and 4 (the paper's) for blocks, as far as the roundings have them.
        players: `blocks` or `linears`. None: linears where plans are searched (`--method auto`), else blocks (the
            paper's). untie: leave q/k/v and gate/up free of each other. per_expert:
            experts of a block free of each other, each with one width for its own linears.
        rounding: `nearest`, `gptq`, `hqq` or `quanto`. None: the best that the machine affords where a checkpoint is
            quantized (`rounding.best_affordable`), nearest where methods are studied (samples, compare).
        group_size: columns that share a scale, for widths that do not say. strict: refuse linears whose columns it does
            not divide; without it they stay as they are, and the result names them.
        calibration: a text file, or several (`Share`) that every draw of windows has its shares of; None samples the
            windows from the model itself. windows, window_tokens: how much of it.
        bos: whether every window of every text begins with the beginning-of-text token; None: where the tokenizer
            itself puts one before a text (where the model samples its own: as it began).
        labels: whose the next tokens are in the value of a coalition, a mean negative log-likelihood: the `text`'s (the
            paper's), or full precision's `predictions`, each token with its probability; then a value less full
            precision's own is the mean KL divergence from it. None: predictions where plans are searched, else text.
        permutations: the paper's M. antithetic: follow each permutation by its reverse.
        rounding_windows: how much of the same text roundings with moments (gptq) see, at most.
        apply_rounding: the rounding that plans are written with, if not the one they are sampled with; what a
            width costs is counted in its format.
        tune: steps by which a written plan is tuned, see `rounding.tuning`; None: as the machine affords where the
            rounding is left open too, else not at all. codes: learn codes together with scales, not scales alone.
        tune_windows: how much of the text tuning sees, at most, and no more than three quarters of it, two windows at
            least; all of what a model samples itself.
    """

    widths: tuple[int | str, ...] | None = None
    players: str | None = None
    untie: bool = False
    per_expert: bool = False
    rounding: str | None = None
    group_size: int = 64
    strict: bool = False
    calibration: Calibration = None
    bos: bool | None = None
    windows: int = 32
    window_tokens: int = 512
    labels: str | None = None
    permutations: int = 100
    antithetic: bool = False
    seed: int = 0
    rounding_windows: int = 128
    apply_rounding: str | None = None
    tune: int | None = None
    codes: bool = True
    tune_windows: int = 1024

    @property
    def measured(self) -> str:
        """The rounding that values are measured with."""
        return self.rounding or "nearest"

    @property
    def applied(self) -> str:
        """The rounding that the plan is written with."""
        return self.apply_rounding or self.measured

    @property
    def open(self) -> bool:
        """Whether rounding and tuning are left to what the machine affords."""
        return self.rounding is None and self.apply_rounding is None

    def settled(self, choice: Choice | None = None) -> "Recipe":
        """The recipe with nothing left open.

        Args:
            choice: what the machine affords; taken where the recipe leaves it open. None: nearest, untuned.
        """
        if choice is None or not self.open:
            return replace(self, rounding=self.measured, tune=self.tune or 0)
        asked = self.tune is not None
        tune, codes = (self.tune, self.codes) if asked else (choice.tune, choice.codes)
        return replace(self, rounding=choice.rounding, tune=tune, codes=codes)

    @property
    def kind(self) -> str:
        """What the players are."""
        return self.players or "blocks"

    def grid(self) -> tuple[Width, ...]:
        """The widths that players may have, rising.

        Raises:
            InputError: a width that is none.
        """
        if self.widths is not None:
            return rising(width_named(item, self.group_size) for item in self.widths)
        wanted = LINEARS if self.kind == "linears" else BLOCKS
        names = {self.measured, self.applied} & ROUNDINGS.keys()  # `check` refuses unknown ones, once
        found = [rounding_named(name).format.bits for name in names]
        return rising(width_named(bits, self.group_size) for bits in wanted if all(bits in own for own in found))

    def for_method(self, method: str) -> "Recipe":
        """The recipe with a method's own choices where nothing was asked: the one place of that rule.

        `auto` plays linears, draws no permutations and looks at predictions; the paper's estimators play blocks.
        """
        if method == "auto":
            players, labels = self.players or "linears", self.labels or "predictions"
            return replace(self, players=players, labels=labels, permutations=0)
        return replace(self, players=self.kind, labels=self.labels or "text")

    def asked(self) -> Json:
        """What a run's folder says was asked; without the text's labels, as before there was a choice."""
        fields = asdict(self)
        if self.labels != "predictions":
            del fields["labels"]
        return fields

    def check(self) -> None:
        """Refuse what can be refused without the model, all at once.

        Raises:
            InputError: with every offending value. MissingExtraError: the rounding's package is missing.
        """
        rounding, applied = rounding_named(self.measured), applied_named(self.applied)
        require_all(
            lambda: at_least("--group-size", self.group_size, 1),
            lambda: require_bits(self.grid(), rounding.format.bits, rounding.name),
            lambda: require_applied(self.grid(), self.measured, self.applied),
            lambda: require_kind(self.kind),
            lambda: require_labels(self.labels),
            lambda: at_least("--rounding-windows", self.rounding_windows, 1),
            lambda: at_least("--tune-windows", self.tune_windows, 2),
            lambda: at_least("--windows", self.windows, 2 if self.tune and self.calibration is None else 1),
            lambda: at_least("--window-tokens", self.window_tokens, 2),
            lambda: at_least("--permutations", self.permutations, 0),
            lambda: at_least("--seed", self.seed, 0),
            *checks_of(
                self.calibration,
                {
                    "--windows": self.windows,
                    "--rounding-windows": self.rounding_windows,
                    "--tune-windows": self.tune_windows,
                },
            ),
            lambda: require_tunable(applied.name, applied.format, self.tune or 0),
        )


def require_labels(labels: str | None) -> None:
    if labels is not None and labels not in LABELS:
        raise InputError(f"--labels {labels}: expected {' or '.join(LABELS)}")


def require_applied(widths: tuple[Width, ...], rounding: str, applied: str) -> None:
    if applied != rounding:
        require_bits(widths, applied_named(applied).format.bits, applied)


def applied_named(name: str) -> Rounding:
    """`rounding_named` for the rounding that plans are written with.

    Raises:
        InputError: unknown name. MissingExtraError: its package is not installed.
    """
    if name not in ROUNDINGS:
        raise InputError(f"--apply-rounding {name}: unknown", f"choose from {', '.join(ROUNDINGS)}")
    return rounding_named(name)


def require_tied(recipe: Recipe) -> None:
    """Refuse free linears where plans are written in the format of servers, which fuse q/k/v, gate/up and experts.

    Raises:
        InputError: with formats that can; or experts are to be players, and players are blocks.
    """
    if recipe.per_expert and recipe.untie:
        raise InputError("--per-expert, --untie: expected one of them", "--untie leaves all linears free")
    if recipe.per_expert and recipe.kind != "linears":
        raise InputError(f"--per-expert: players are {recipe.kind}", "add --players linears")
    if recipe.per_expert and recipe.applied in ROUNDINGS:
        require_apart(recipe)
    if recipe.untie and recipe.applied in ROUNDINGS and rounding_named(recipe.applied).format is COMPRESSED_TENSORS:
        raise InputError(
            f"--untie: {recipe.applied} writes {COMPRESSED_TENSORS.name}, and servers that load it (vLLM) fuse q/k/v "
            "and gate/up, which then need equal widths",
            "leave --untie out, or write with --rounding or --apply-rounding quanto or hqq (read by apportion.load)",
        )


def require_apart(recipe: Recipe) -> None:
    """Refuse experts of several widths in the format of servers.

    Raises:
        InputError: with formats that can.
    """
    if rounding_named(recipe.applied).format is COMPRESSED_TENSORS:
        raise InputError(
            f"--per-expert: {recipe.applied} writes {COMPRESSED_TENSORS.name}, and servers that load it (vLLM) run a "
            "block's experts as one, which then need equal widths",
            "leave it out, or write with --rounding or --apply-rounding quanto or hqq (read by apportion.load)",
        )
