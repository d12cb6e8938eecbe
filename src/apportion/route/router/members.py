"""The network's members, each held out from a fold: when to stop, and what they say of questions unseen.

The number of steps is the one with the smallest held-out regret; when a question's own held-out decision is
judged, its fold has no say in that. So what gates and calibration see is unseen in training and in stopping.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from apportion.route.router.draft import Drafted
from apportion.route.router.fit import Fitted, fit_members
from apportion.route.router.folds import others
from apportion.route.router.lesson import Lesson
from apportion.route.router.policy import Layers, Policy, joint, mean_outcome
from apportion.route.router.reader import Reader
from apportion.route.router.utility import (
    LATENCY_WEIGHTS,
    TOKEN_WEIGHTS,
    Costed,
    Ints,
    Weights,
    utility,
    weight_grid,
)


@dataclass(frozen=True, slots=True)
class Said:
    """Scores of the strategies for questions not seen, and for which of them a draft is worth making first."""

    scores: Float[ndarray, "n 4"]
    asks: Bool[ndarray, " n"] | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """Fitted members at every check, side by side: those of fold f are numbers f * seeds to (f + 1) * seeds.

    Attributes:
        blank: the policy without its layers. read: [n, f] standardised features of the lesson's questions.
    """

    lesson: Lesson
    fitted: Fitted
    blank: Policy
    read: Float[ndarray, "n f"]
    costed: Costed
    drafted: Drafted | None

    def policy(self, check: int) -> Policy:
        """All members together, as they were at a check."""
        return replace(self.blank, layers=self.fitted.layers[check])

    def said(self, weights: Weights, own_check: list[int]) -> Said:
        """Of every question by the members that did not see it, stopped where the other folds say."""
        parts = [self._fold(fold, check, weights) for fold, check in enumerate(own_check)]
        heads = np.zeros((len(self.read), parts[0].shape[1]))
        for rows, part in zip(self.lesson.held, parts, strict=True):
            heads[rows] = part
        return Said(joint(heads, self.blank.columns), heads[:, 2] > 0 if self.drafted else None)

    def regrets(self) -> Float[ndarray, "checks folds"]:
        """Mean regret on held-out questions over a grid of weights, scaled as in the loss."""
        checks, found = len(self.fitted.steps), np.zeros((len(self.fitted.steps), len(self.lesson.held)))
        grid = weight_grid(TOKEN_WEIGHTS, LATENCY_WEIGHTS, timed=self.costed.has_latency)
        for fold, rows in enumerate(self.lesson.held):
            side_by_side = self._all_checks(fold)
            for weights in grid:
                values = utility(self.costed.select(rows), weights)
                said = side_by_side.layers.logits(side_by_side.inputs(self.read[rows], weights))
                heads = (
                    said.reshape(checks, -1, *said.shape[1:]).mean(axis=1).astype(np.float64)
                )  # [checks, rows, heads]
                chosen = joint(heads.reshape(-1, heads.shape[2]), self.blank.columns).argmax(axis=1)
                got = values[np.tile(np.arange(len(rows)), checks), chosen].reshape(checks, len(rows))
                if self.drafted is not None:
                    got = np.where(heads[..., 2] > 0, self.drafted.utility(weights)[rows], got)
                share = 1 / (len(grid) * (1 + weights.token + weights.latency))
                found[:, fold] += share * (values.max(axis=1) - got).mean(axis=1)
        return found

    def _all_checks(self, fold: int) -> Policy:
        """The members that did not see a fold, as they were at every check, all as members of one policy."""
        seeds = self.lesson.plan.seeds
        own = slice(fold * seeds, (fold + 1) * seeds)
        parts = {
            part.name: np.concatenate([getattr(layers, part.name)[own] for layers in self.fitted.layers])
            for part in fields(Layers)
        }
        return replace(self.blank, layers=Layers(**parts))

    def _fold(self, fold: int, check: int, weights: Weights) -> Float[ndarray, "rows heads"]:
        """Logits for a fold by the members that did not see it."""
        seeds = self.lesson.plan.seeds
        own = np.arange(fold * seeds, (fold + 1) * seeds)
        layers = self.fitted.layers[check].select(own)
        return replace(self.blank, layers=layers).heads(self.read[self.lesson.held[fold]], weights)


def fit_all(lesson: Lesson, names: tuple[str, ...], drafted: Drafted | None = None) -> Members:
    """Fit `seeds` members for each fold, on the questions of the other folds.

    Args:
        names: the features read. drafted: with it, a third head learns whether to draft first.
    """
    costed, reader = lesson.costed(names), Reader.of(lesson.profile, names)
    read = reader.read(lesson.profile)
    seen: list[Ints] = [others(rows, lesson.profile.n) for rows in lesson.held for _ in range(lesson.plan.seeds)]
    fitted = fit_members(read.astype(np.float32), costed, seen, lesson.plan, lesson.seed, drafted)
    blank = Policy(reader, costed.columns, mean_outcome(costed), Layers(*(np.zeros(0, np.float32),) * 6))
    return Members(lesson, fitted, blank, read, costed, drafted)


def own_checks(regrets: Float[ndarray, "checks folds"]) -> list[int]:
    """For each fold the check with the smallest mean regret on the other folds."""
    return [int(np.delete(regrets, fold, axis=1).mean(axis=1).argmin()) for fold in range(regrets.shape[1])]
