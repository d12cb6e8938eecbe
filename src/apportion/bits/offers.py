"""Embedding and head as players: their widths, what they cost, and what they leave to the blocks. [ours]

They are players where the budget speaks of the whole file. Each is measured alone at each of its widths, with
everything else at full precision, on the windows of the game; costs add up, and interactions with the blocks are not
measured. Then the program over blocks, embedding and head is one over the blocks for each choice of the others:

    min over v of  cost(v) + min over x of loss(x),   bytes(x) <= budget - bytes(v)

An offer is one v that may be best: another one that costs less leaves the blocks fewer bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from apportion.bits.checkpoint import fixed_bytes
from apportion.bits.game import Costs
from apportion.bits.plan import Budget, Plan, Sensitivity, budget_from_bytes
from apportion.bits.quantizer import Quantizer
from apportion.bits.request import QuantizeRequest
from apportion.bits.vocabulary import UNTOUCHED, Vocabulary, by_name, rounded
from apportion.core.progress import progress
from apportion.formats import COMPRESSED_TENSORS, Packed, Width
from apportion.models.text import Windows
from apportion.models.vocabulary import VocabularyMatrix, names_of, vocabulary_of


@dataclass(frozen=True, slots=True)
class Offer:
    """One choice of widths for embedding and head.

    Attributes:
        budget: what it leaves to the blocks. fixed_bytes: of the files, embedding and head at these widths included.
        vocabulary: the widths; a matrix that is not in it stays as the files have it.
        costs: of each at its width alone, nats per token, by name; empty before they were measured.
        packed: its rounded weights by module path.
    """

    budget: Budget
    fixed_bytes: int
    vocabulary: Vocabulary = field(default_factory=lambda: UNTOUCHED)
    costs: Mapping[str, float] = field(default_factory=dict)
    packed: Mapping[str, Packed] = field(default_factory=dict)

    @property
    def cost_nats(self) -> float:
        """What it adds to the blocks' loss, nats per token."""
        return sum(self.costs.values())


@dataclass(frozen=True, slots=True)
class Offers:
    """All choices that leave the blocks enough.

    Attributes:
        kept: why embedding or head is no player, by name.
    """

    choices: tuple[Offer, ...]
    kept: Mapping[str, str]


def offers_for(quantizer: Quantizer, ask: QuantizeRequest) -> Offers:
    """The choices for embedding and head within a budget: one, to leave them alone, where it is not of the whole file.

    Raises:
        BudgetError: out of range: for the whole file, below the smallest of all choices.
    """
    limit, costs = ask.file_bytes(quantizer.parameters), quantizer.costs
    if limit is None:
        reason = "--avg-bits speaks of the blocks' linears"
        names = names_of(quantizer.staged)
        return Offers((Offer(ask.budget(costs), costs.fixed_bytes),), dict.fromkeys(names, reason))
    widths, kept = players_of(quantizer, ask)
    whole = [costs_with(quantizer, vocabulary) for vocabulary in combinations(widths)]
    least = min(whole, key=lambda item: item[1].fixed_bytes)
    budget_from_bytes(least[1], limit)  # refuses what not even the smallest choice can do
    fitting = [(vocabulary, own) for vocabulary, own in whole if own.smallest() <= limit]
    return Offers(
        tuple(Offer(budget_from_bytes(own, limit), own.fixed_bytes, vocabulary) for vocabulary, own in fitting), kept
    )


def leaves_room(quantizer: Quantizer, ask: QuantizeRequest) -> bool:
    """Whether a budget of the whole file is not used up by the largest plan, embedding and head at their narrowest."""
    limit = ask.file_bytes(quantizer.parameters)
    if limit is None:
        return False
    widths, _ = players_of(quantizer, ask)
    least = min((costs_with(quantizer, choice)[1] for choice in combinations(widths)), key=lambda own: own.fixed_bytes)
    return limit > least.largest()


def players_of(
    quantizer: Quantizer, ask: QuantizeRequest
) -> tuple[dict[VocabularyMatrix, tuple[Width, ...]], dict[str, str]]:
    """Widths of embedding and head where they are players, and the reasons where they are not."""
    form, size = quantizer.applied.format, quantizer.recipe.group_size
    if form is not COMPRESSED_TENSORS:
        return {}, dict.fromkeys(names_of(quantizer.staged), f"the format {form.name} is written without them")
    found, kept = vocabulary_of(quantizer.staged)
    widths: dict[VocabularyMatrix, tuple[Width, ...]] = {}
    for matrix in found:
        names = ("embedding", "head") if matrix.twin else (matrix.name,)
        if held := [name for name in names if name in ask.keep]:
            kept[matrix.name] = f"--keep {','.join(held)}"
        elif matrix.shape[1] % size:
            kept[matrix.name] = f"its {matrix.shape[1]} columns are not divided by groups of {size}"
        else:
            widths[matrix] = ask.vocabulary_widths(matrix.name, size)
    return widths, kept


def combinations(widths: Mapping[VocabularyMatrix, tuple[Width, ...]]) -> list[Vocabulary]:
    """Every choice, that of leaving all as they are first."""
    ways = [[None, *own] for own in widths.values()]
    return [
        {matrix: width for matrix, width in zip(widths, choice, strict=True) if width is not None}
        for choice in product(*ways)
    ]


def costs_with(quantizer: Quantizer, vocabulary: Vocabulary) -> tuple[Vocabulary, Costs]:
    """The players' costs in a file with embedding and head at these widths."""
    costs = quantizer.costs
    fixed = fixed_bytes(quantizer.staged, quantizer.applied.format, costs.widths, vocabulary)
    return vocabulary, replace(costs, fixed_bytes=fixed)


def priced(quantizer: Quantizer, offers: Sequence[Offer], text: Windows, nll_fp: float) -> list[Offer]:
    """The offers with their costs, without those that another one beats in cost and in bytes left; the cheapest first.

    Args:
        text: the game's. nll_fp: of the checkpoint's own weights on it, nats per token.

    Cost: one forward pass over the text for each matrix and width, and rounding it.
    """
    pairs = list(dict.fromkeys(pair for offer in offers for pair in offer.vocabulary.items()))
    packed: dict[tuple[VocabularyMatrix, Width], Mapping[str, Packed]] = {}
    costs: dict[tuple[VocabularyMatrix, Width], float] = {}
    teacher = quantizer.teacher(text.windows) if pairs else None
    with progress("embedding and head", len(pairs), "evaluations") as advance:
        for matrix, width in pairs:
            packed[matrix, width] = rounded(quantizer.staged, {matrix: width})
            with quantizer.staged.in_place(packed[matrix, width]):
                costs[matrix, width] = float(quantizer.staged.window_nll(text.windows, teacher=teacher).mean()) - nll_fp
            advance()
    whole = [
        replace(
            offer,
            costs={pair[0].name: costs[pair] for pair in offer.vocabulary.items()},
            packed={path: item for pair in offer.vocabulary.items() for path, item in packed[pair].items()},
        )
        for offer in offers
    ]
    ranked = sorted(whole, key=lambda offer: (offer.cost_nats, -offer.budget.player_bytes))
    return [
        offer
        for index, offer in enumerate(ranked)
        if all(other.budget.player_bytes < offer.budget.player_bytes for other in ranked[:index])
    ]


def plan_in(offer: Offer, plan: Plan) -> Plan:
    """A plan of the blocks as one of the whole file: embedding and head in its bytes and in its predicted loss."""
    return replace(
        plan,
        costs=replace(plan.costs, fixed_bytes=offer.fixed_bytes),
        total_bytes=plan.player_bytes + offer.fixed_bytes,
        predicted_nll=plan.predicted_nll + offer.cost_nats,
        vocabulary=by_name(offer.vocabulary),
    )


def sensitivity_in(offer: Offer, sensitivity: Sensitivity) -> Sensitivity:
    """A surrogate whose costs count embedding and head as they were chosen."""
    return replace(sensitivity, costs=replace(sensitivity.costs, fixed_bytes=offer.fixed_bytes))
