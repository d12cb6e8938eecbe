"""What is asked of a quantization besides the recipe: the budget, and what it speaks of; the method; where it runs."""

from dataclasses import dataclass

from apportion.bits.game import Costs
from apportion.bits.plan import METHODS, Budget, budget_from_bits, budget_from_bytes, require_alpha, require_estimable
from apportion.bits.recipe import Recipe, require_tied
from apportion.bits.vocabulary import WIDTHS
from apportion.core.errors import BudgetError, InputError, require_all
from apportion.formats import Width, rising, width_named
from apportion.models.vocabulary import NAMES

VOCABULARY_BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What is asked of `quantize`, besides the recipe.

    Attributes:
        avg_bits: the budget as the paper has it: mean bits over the blocks' linears; embedding and head stay at 16.
        max_bytes, bits_per_weight: the budget of the whole file: its bytes, or bits per parameter; then embedding and
            head are players too. Exactly one of the three is given.
        keep: of `embedding` and `head` those that stay at 16 bits in every case.
        embedding_bits: what an embedding may have besides 16: 8, which stock transformers loads; with 4 too the folder
            may be one that only `apportion.load` reads (`loads_in` in the result). A head has 4 or 8.
        method: `auto` (see `plan.search` and `finalists`), or one of `plan.estimate`. alpha: shrinkage of coopq.
        evaluations: coalitions that `auto` may measure. finalists: plans that it writes and measures again, where
            the written weights differ from the sampled ones.
        fast: as quick as can be: codes rounded to nearest, untuned, unless the recipe says otherwise.
        until_stable: stop sampling permutations when the plans have stopped changing (see `plan.stopping`).
        device, dtype: where the game is played; `auto` chooses and says why.
    """

    avg_bits: float | None = None
    max_bytes: int | None = None
    bits_per_weight: float | None = None
    keep: tuple[str, ...] = ()
    embedding_bits: tuple[int, ...] = WIDTHS["embedding"]
    method: str = "auto"
    alpha: float = 0.5
    evaluations: int = 500
    finalists: int = 3
    fast: bool = False
    until_stable: bool = False
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False

    def check(self, recipe: Recipe) -> None:
        """Refuse before the long work what its steps would refuse after it, all at once.

        Args:
            recipe: with the method's own choices in it.

        Raises:
            InputError: with every offending value. MissingExtraError: a rounding's package is missing.
        """
        require_all(
            recipe.check,
            lambda: require_tied(recipe),
            lambda: self.require_method(recipe),
            self.require_one_budget,
            self.require_vocabulary,
        )

    def require_one_budget(self) -> None:
        """Refuse none, several, and bits per weight that no file has.

        Raises:
            BudgetError: saying so.
        """
        given = [item for item in (self.avg_bits, self.max_bytes, self.bits_per_weight) if item is not None]
        if len(given) != 1:
            raise BudgetError(
                "a budget: expected exactly one of --avg-bits, --max-bytes and --bits-per-weight", "give one of them"
            )
        if self.bits_per_weight is not None and not 0 < self.bits_per_weight <= 32:
            raise BudgetError(f"--bits-per-weight {self.bits_per_weight}: expected above 0 and at most 32, e.g. 4.5")

    def require_vocabulary(self) -> None:
        """Refuse matrices that are none, and bits that they cannot have.

        Raises:
            InputError: naming the offenders.
        """
        if unknown := [name for name in self.keep if name not in NAMES]:
            raise InputError(f"--keep {','.join(unknown)}: unknown", f"choose from {', '.join(NAMES)}, with commas")
        if wrong := [bits for bits in self.embedding_bits if bits not in VOCABULARY_BITS]:
            raise InputError(
                f"--embedding-bits {','.join(map(str, wrong))}: not supported",
                f"choose from {', '.join(map(str, VOCABULARY_BITS))}, or --keep embedding",
            )

    def require_method(self, recipe: Recipe) -> None:
        """Refuse a method, or options of it, that cannot be.

        Raises:
            InputError: naming the offender.
        """
        if self.method not in ("auto", *METHODS):
            raise InputError(f"--method {self.method}: unknown", f"choose from auto, {', '.join(METHODS)}")
        require_alpha(self.alpha)
        require_estimable(self.method, recipe.grid(), recipe.permutations)
        if self.finalists < 1:
            raise InputError(f"--finalists {self.finalists}: expected at least 1")
        if self.until_stable and self.method == "auto":
            raise InputError(
                "--until-stable: --method auto draws no permutations that could stop",
                "limit it by --evaluations instead, or choose --method coopq, regression or shapley",
            )

    def vocabulary_widths(self, name: str, group_size: int) -> tuple[Width, ...]:
        """What embedding or head may have besides its own 16 bits, rising; nothing where it is kept."""
        bits = self.embedding_bits if name == "embedding" else WIDTHS[name]
        return () if name in self.keep else rising(width_named(item, group_size) for item in bits)

    def file_bytes(self, parameters: int) -> int | None:
        """The budget of a file with so many parameters, in bytes; None where it speaks of the blocks' linears alone."""
        return self.max_bytes if self.bits_per_weight is None else int(self.bits_per_weight * parameters / 8)

    def budget(self, costs: Costs) -> Budget:
        """The budget in bytes of players.

        Raises:
            InputError: none or two budgets. BudgetError: out of range.
        """
        self.require_one_budget()
        if self.avg_bits is not None:
            return budget_from_bits(costs, self.avg_bits)
        assert self.max_bytes is not None, "bits per weight are bytes of a model's file"
        return budget_from_bytes(costs, self.max_bytes)
