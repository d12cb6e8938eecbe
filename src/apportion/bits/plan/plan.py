"""A plan: the width of every player, what it costs, and how it was chosen."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from apportion.bits.game import Assignment, Costs, costs_from
from apportion.core.artifact import Json
from apportion.core.errors import ArtifactCorruptError


@dataclass(frozen=True)
class Plan:
    """Widths and their evidence.

    Attributes:
        costs: players, widths and what they cost.
        assignment: for every player the index of its width.
        avg_bits: mean bits over all quantized weights.
        player_bytes: bytes of the players' tensors.
        total_bytes: bytes of the weight files, exact after saving, an upper bound before.
        budget_bytes, asked: what could be spent on players, and in whose words.
        predicted_nll: of the surrogate, nats per token on the calibration text.
        measured_nll: of the real model on the calibration text; None if it was not measured.
        optimal: the solver proved the surrogate's optimum; otherwise `gap` says how far it may be.
        method, settings: the estimator, and model, text and rounding by digest and name.
        tried: assignments measured for this plan, with their values.
        judged_on, judged_nll: what the final choice among written plans was made on, and the loss there; empty and
            None where there was none. judged_kl: mean KL divergence from full precision there, where its predictions
            are the labels.
        vocabulary: widths of embedding and head by name; those that are not in it stay at 16 bits.
        source: what proposed it: `program` (the surrogate's optimum), a step of the search, or `finalist` (not the
            search's own best, but best as written).
    """

    costs: Costs
    assignment: Assignment
    avg_bits: float
    player_bytes: int
    total_bytes: int
    budget_bytes: int
    asked: str
    method: str
    predicted_nll: float
    optimal: bool
    gap: float
    settings: Json
    measured_nll: float | None = None
    tried: tuple[Json, ...] = ()
    source: str = "program"
    judged_on: str = ""
    judged_nll: float | None = None
    judged_kl: float | None = None
    vocabulary: Mapping[str, str] = field(default_factory=dict)

    def by_name(self) -> dict[str, str]:
        """Width by player's name."""
        return self.costs.by_name(self.assignment)


def plan_from(content: Json) -> Plan:
    """Read back what `artifact.plain` wrote.

    Raises:
        ArtifactCorruptError: a field is missing or unknown, or not every player has one of the widths.
    """
    try:
        plan = Plan(
            **{
                **content,
                "costs": costs_from(content["costs"]),
                "assignment": tuple(content["assignment"]),
                "tried": tuple(content["tried"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactCorruptError(f"plan: {error} is missing or unknown", "make the plan again") from error
    players, widths = len(plan.costs.players), len(plan.costs.widths)
    if len(plan.assignment) != players or not set(plan.assignment) <= set(range(widths)):
        raise ArtifactCorruptError(
            f"plan: assignment {list(plan.assignment)}: expected an index below {widths} for each of {players} players",
            "make the plan again",
        )
    return plan
