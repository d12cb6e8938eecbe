"""Contenders that say what there is to win: knowing the data set, a lucky draw, the same questions asked again."""

from dataclasses import dataclass

import numpy as np

from apportion.core.errors import InputError
from apportion.core.seeds import stream
from apportion.route.evaluation.contest import Choice, Routed, without_probes
from apportion.route.profile.profile import Profile
from apportion.route.router.router import Router
from apportion.route.router.spending import Done
from apportion.route.router.utility import Scale, Weights, best_static, cost, labels, utility


@dataclass(frozen=True, slots=True)
class ByDataset:
    """The static strategy best on the training questions of the same data set; of all, for one not seen there.

    No live question says which data set it is of: this is what knowing it would be worth.
    """

    seen: Profile
    scale: Scale

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        costed, names = cost(self.seen, self.scale), np.array(self.seen.dataset)
        best = {str(name): best_static(costed.select(names == name), weights) for name in np.unique(names)}
        overall = best_static(costed, weights)
        return without_probes(np.array([best.get(name, overall) for name in profile.dataset]))


@dataclass(frozen=True, slots=True)
class SameShares:
    """The router's decisions dealt out to the questions at random: what its mixture alone is worth."""

    router: Router
    seed: int

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        made = Routed(self.router).choose(profile, weights)
        order = stream(self.seed, "same shares", str(weights)).permutation(profile.n)
        done = Done(made.done.draft[order], made.done.search[order], made.done.look[order])
        return Choice(made.columns[order], done)


@dataclass(frozen=True, slots=True)
class RepeatedOracle:
    """The best strategy of each question in another run of the same pipelines: luck does not repeat.

    Raises:
        InputError: the other run lacks some of the questions.
    """

    repeat: Profile
    scale: Scale

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        place = {key: row for row, key in enumerate(self.repeat.keys().tolist())}
        rows = [place.get(key) for key in profile.keys().tolist()]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            raise InputError(
                f"--repeat: lacks {len(rows) - len(known)} of {len(rows)} questions",
                "give a second run of `apportion profile` on the same questions",
            )
        again = self.repeat.restrict(profile.strategies).select(np.array(known))
        costed = cost(again, self.scale)
        return without_probes(labels(utility(costed, weights), costed.tokens))
