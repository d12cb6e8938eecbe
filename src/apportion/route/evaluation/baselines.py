"""Baselines fitted for each weights on the same questions and features: a fair fight for the router.

Logistic regression and k nearest neighbours read every feature, and pay for the probes; the query-length rule
reads the number of words and pays nothing.
"""

from itertools import product
from typing import Any

import numpy as np

from apportion.route.ask.features import needs_of
from apportion.route.evaluation.contest import Choice, without_probes
from apportion.route.profile.profile import Floats, Profile
from apportion.route.router.lesson import probed_cost
from apportion.route.router.reader import Reader
from apportion.route.router.spending import Done
from apportion.route.router.train import tier_features
from apportion.route.router.utility import Scale, Weights, cost, labels, utility


def probed_choice(columns: np.ndarray, names: tuple[str, ...]) -> Choice:
    """A choice made after measuring these features of every question."""
    needs = needs_of(names)
    return Choice(columns, Done.for_all(len(columns), draft=needs.draft, search=needs.search))


class Logistic:
    """Multinomial logistic regression on the best strategy, questions weighted by what is at stake."""

    def __init__(self, profile: Profile, scale: Scale) -> None:
        self.reader = Reader.of(profile, tier_features(profile))
        self.inputs = self.reader.read(profile)
        self.costed = probed_cost(profile, scale, self.reader.names)
        self.models: dict[Weights, Any] = {}

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        if weights not in self.models:
            self.models[weights] = self._fit(weights)
        model = self.models[weights]
        inputs = self.reader.standardise(profile.keep_features(self.reader.names).features)
        columns = np.full(len(inputs), model) if isinstance(model, int) else model.predict(inputs)
        return probed_choice(columns, self.reader.names)

    def _fit(self, weights: Weights) -> Any:
        """The model; or the one column that is best for every question."""
        from sklearn.linear_model import LogisticRegression

        values = utility(self.costed, weights)
        best = labels(values, self.costed.tokens)
        if len(set(best.tolist())) == 1:
            return int(best[0])
        stake = values.max(axis=1) - values[:, list(self.costed.columns)].mean(axis=1)
        return LogisticRegression(C=0.3, max_iter=2000).fit(self.inputs, best, sample_weight=stake + 1e-6)


class Neighbours:
    """The strategy with the highest mean utility among the k nearest training questions, k = sqrt(n)."""

    def __init__(self, profile: Profile, scale: Scale) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.reader = Reader.of(profile, tier_features(profile))
        self.costed = probed_cost(profile, scale, self.reader.names)
        self.index = NearestNeighbors(n_neighbors=max(1, round(profile.n**0.5)))
        self.index.fit(self.reader.read(profile))
        self.near: tuple[int, np.ndarray] | None = None

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        if self.near is None or self.near[0] != id(profile):
            self.near = (id(profile), self.index.kneighbors(self.reader.read(profile), return_distance=False))
        rows = self.near[1]
        values = utility(self.costed, weights)[rows].mean(axis=1)
        return probed_choice(labels(values, self.costed.tokens[rows].mean(axis=1)), self.reader.names)


class LengthRule:
    """One strategy up to so many words, another above: the best pair and threshold in training."""

    def __init__(self, profile: Profile, scale: Scale) -> None:
        self.words = word_counts(profile)
        self.costed = cost(profile, scale)
        self.thresholds = np.unique(np.quantile(self.words, np.linspace(0.1, 0.9, 9)))

    def choose(self, profile: Profile, weights: Weights) -> Choice:
        values = utility(self.costed, weights)
        columns = self.costed.columns

        def worth(rule: tuple[float, int, int]) -> float:
            threshold, short, long = rule
            return float(np.where(self.words <= threshold, values[:, short], values[:, long]).mean())

        threshold, short, long = max(product(self.thresholds, columns, columns), key=worth)
        return without_probes(np.where(word_counts(profile) <= threshold, short, long))


def word_counts(profile: Profile) -> Floats:
    """[n] words of each question; as recorded, where the profile holds no texts."""
    if not any(profile.question) and "question_words" in profile.feature_names:
        return np.asarray(profile.keep_features(("question_words",)).features[:, 0])
    return np.array([len(text.split()) for text in profile.question], dtype=np.float64)
