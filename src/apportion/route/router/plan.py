"""How the networks of a router are fitted. A value; the fit is elsewhere."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How the networks are fitted: `folds` x `seeds` members each; weights drawn log-uniformly, 0 among them.

    Attributes:
        hidden: units of either hidden layer. steps, batch, learning_rate, weight_decay: of AdamW.
        check_every: steps between the points at which training may be stopped.
        head_share: weight of the heads' cross-entropy beside the regret.
        zero_share: share of the drawn weights that are 0; the others lie from `smallest_weight` to 3.
        conditioned: whether the network sees the weights.
    """

    hidden: int = 32
    folds: int = 5
    seeds: int = 2
    steps: int = 1000
    check_every: int = 20
    batch: int = 256
    learning_rate: float = 0.005
    weight_decay: float = 0.03
    head_share: float = 0.2
    zero_share: float = 0.15
    smallest_weight: float = 0.01
    conditioned: bool = True
