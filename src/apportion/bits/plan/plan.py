"""A plan: the width of every player, what it costs, and how it was chosen."""

from dataclasses import dataclass

import numpy as np

from apportion.bits.game.players import Assignment, Player
from apportion.bits.game.samples import player_from
from apportion.bits.plan.budget import Costs
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json
from apportion.core.errors import ArtifactCorruptError


@dataclass(frozen=True)
class Plan:
    """Widths and their evidence.

    Attributes:
        assignment: bits of every player.
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
            None where there was none.
        source: what proposed it: `program` (the surrogate's optimum), a step of the search, or `finalist` (not the
            search's own best, but best as written).
    """

    players: tuple[Player, ...]
    widths: tuple[int, ...]
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

    def by_name(self) -> dict[str, int]:
        """Width by player's name."""
        return {player.name: bits for player, bits in zip(self.players, self.assignment, strict=True)}


def spent(costs: Costs, assignment: Assignment) -> int:
    """Bytes of the players' tensors under an assignment."""
    columns = [costs.widths.index(bits) for bits in assignment]
    return int(costs.player_bytes[np.arange(len(columns)), columns].sum())


def average_bits(assignment: Assignment, parameters: NDArray[np.int64]) -> float:
    """Mean bits over all quantized weights."""
    return float(np.dot(assignment, parameters) / parameters.sum())


def plan_from(content: Json) -> Plan:
    """Read back what `artifact.plain` wrote.

    Raises:
        ArtifactCorruptError: a field is missing or unknown, or not every player has one of the widths.
    """
    try:
        plan = Plan(
            **{
                **content,
                "players": tuple(player_from(item) for item in content["players"]),
                "widths": tuple(content["widths"]),
                "assignment": tuple(content["assignment"]),
                "tried": tuple(content["tried"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise ArtifactCorruptError(f"plan: {error} is missing or unknown", "make the plan again") from error
    if len(plan.assignment) != len(plan.players) or not set(plan.assignment) <= set(plan.widths):
        raise ArtifactCorruptError(
            f"plan: assignment {list(plan.assignment)}: expected one of the widths {list(plan.widths)} for each of "
            f"{len(plan.players)} players",
            "make the plan again",
        )
    return plan
