"""Samples -> Sensitivity: what each choice of width costs in nats, alone and beside each other choice.

A choice is (player, width below the highest). The surrogate of an assignment's excess loss is
    sum of linear[k] over its choices + sum of pair[k, l] over pairs k < l of its choices,
relative to all players at the highest width.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from apportion.bits.game import Assignment, Costs, Samples, costs_from
from apportion.bits.game.spqe import marginals
from apportion.bits.plan.regression import fit_quadratic
from apportion.core.arrays import NDArray
from apportion.core.artifact import Json, plain
from apportion.core.errors import ArtifactCorruptError, InputError
from apportion.formats.width import Width, listed

METHODS = ("coopq", "regression", "shapley")
FEWEST_PERMUTATIONS = {"coopq": 2, "regression": 1, "shapley": 1}  # a covariance needs two


@dataclass(frozen=True)
class Sensitivity:
    """A quadratic surrogate of the game.

    Attributes:
        method: which estimator made it.
        choices: [choices, 2] player index and width index of each choice.
        linear: [choices] cost in nats per token.
        pair: [choices, choices] cost of two choices together, symmetric, zero diagonal.
        intercept: value with every player at the highest width.
        costs, settings: as in the samples.
        details: method-specific values as JSON has them (phi and its standard errors, C, K, a; the ridge chosen).
    """

    method: str
    choices: Int[NDArray[np.int64], "choices 2"]
    linear: Float[NDArray[np.float64], " choices"]
    pair: Float[NDArray[np.float64], "choices choices"]
    intercept: float
    costs: Costs
    settings: Json
    details: Json = field(default_factory=dict)

    def chosen(self, assignment: Assignment) -> NDArray[np.bool_]:
        """Which choices an assignment makes."""
        return np.asarray(np.asarray(assignment)[self.choices[:, 0]] == self.choices[:, 1])

    def predict(self, assignment: Assignment) -> float:
        """Predicted NLL in nats per token."""
        x = self.chosen(assignment).astype(np.float64)
        return float(self.intercept + self.linear @ x + x @ self.pair @ x / 2)


def choices_of(players: int, widths: int) -> Int[NDArray[np.int64], "choices 2"]:
    """All (player, width index below the highest), player by player."""
    return np.asarray([(p, w) for p in range(players) for w in range(widths - 1)], dtype=np.int64).reshape(-1, 2)


def require_alpha(alpha: float) -> None:
    """Refuse a shrinkage outside [0, 1].

    Raises:
        InputError: saying so.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"--alpha {alpha}: expected a number from 0 to 1")


def require_estimable(method: str, widths: tuple[Width, ...], permutations: int) -> None:
    """Refuse a method that SPQE's values cannot feed; methods of other files need none of them.

    Raises:
        InputError: fewer permutations than it needs, or regression of widths between the lowest and the highest,
            which SPQE never measures.
    """
    needed = FEWEST_PERMUTATIONS.get(method, 0)
    if permutations < needed:
        raise InputError(f"--permutations {permutations}: {method} needs at least {needed}", "sample more permutations")
    if method == "regression" and len(widths) > 2:
        raise InputError(
            f"--method regression: SPQE measures only {widths[0].name} and {widths[-1].name} of --widths "
            + listed(widths),
            "use auto, which measures all widths, leave regression out of --methods, or give two widths",
        )


def estimate(samples: Samples, method: str = "coopq", *, alpha: float = 0.5) -> Sensitivity:
    """Estimate the surrogate of a method on measured values.

    Args:
        samples: of `take_samples`.
        method: `coopq` (the paper: Shapley means and shrunk covariance), `shapley` (means alone) or
            `regression` (ridge on all measured values, ours).
        alpha: shrinkage of the covariance towards its diagonal, in [0, 1] (paper: 0.5).

    Returns:
        What each width of each player costs in nats per token, alone and beside each other one.

    Raises:
        InputError: unknown method, alpha outside [0, 1], or fewer permutations than the method needs.

    Cost: no evaluation of the model; `regression` decomposes a matrix of coalitions by pairs of choices.

    Source: CoopQ (Findings of ACL 2026, arXiv 2509.15455) for `coopq` and `shapley`; `regression` is ours.

    >>> from apportion import Recipe, open_model, take_samples
    >>> recipe = Recipe(calibration=TEXT, windows=2, window_tokens=24, group_size=32, permutations=2)
    >>> samples = take_samples(open_model(MODEL, recipe), OUT)
    >>> means = estimate(samples, "shapley")
    >>> bool(abs(means.linear.sum() - (samples.nll_low - samples.nll_high)) < 1e-9)  # efficiency
    True
    """
    if method not in METHODS:
        raise InputError(f"--method {method}: unknown", f"choose from {', '.join(METHODS)}")
    require_alpha(alpha)
    require_estimable(method, samples.costs.widths, len(samples.orders))
    return regress(samples) if method == "regression" else shapley(samples, method, alpha)


def shapley(samples: Samples, method: str, alpha: float) -> Sensitivity:
    """The paper's estimator (or its means alone).

    phi_i = mean over permutations of D[m, i]; C = covariance of the rows of D;
    K = (1 - alpha) C + alpha diag(C); a_i = phi_i - sum over j != i of K_ij; objective a'q + q'Kq.
    Source: CoopQ, sections on SPQE and on allocation. With q binary, K_ii joins a_i.
    """
    D = marginals(samples.orders, samples.means(), 0, samples.costs.high)
    phi = D.mean(0)
    players = len(samples.costs.players)
    C = np.cov(D, rowvar=False, ddof=1).reshape(players, players) if len(D) > 1 else np.zeros((players, players))
    K = (1 - alpha) * C + alpha * np.diag(np.diag(C))
    a = phi - (K.sum(1) - np.diag(K))
    off_diagonal = K - np.diag(np.diag(K))
    coopq = method == "coopq"
    details = {
        "alpha": alpha,
        "permutations": len(D),
        "phi": phi,
        "phi_se": D.std(0, ddof=1) / np.sqrt(len(D)) if len(D) > 1 else None,
        "C": C,
        "K": K,
        "a": a,
    }
    linear = a + np.diag(K) if coopq else phi
    pair = 2 * off_diagonal if coopq else np.zeros_like(K)
    return surrogate(samples, method, two_width(samples, linear), two_width_pairs(samples, pair), details)


def two_width(samples: Samples, linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Costs of the lowest width; widths between lowest and highest are interpolated in quantization error.

    SPQE measures the lowest against the highest width only. An intermediate width's squared error lies a
    factor 4 per bit below, so its share of the cost is (4^-b - 4^-high) / (4^-low - 4^-high). [ours]
    """
    return np.asarray(np.outer(linear, shares(samples.costs.widths)).ravel(), dtype=np.float64)


def two_width_pairs(samples: Samples, pair: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pair costs with intermediate widths interpolated as in `two_width`."""
    return np.asarray(np.kron(pair, np.outer(shares(samples.costs.widths), shares(samples.costs.widths))))


def shares(widths: tuple[Width, ...]) -> NDArray[np.float64]:
    """Share of the lowest width's cost, for every width below the highest: error falls fourfold with a stored bit.

    >>> from apportion.formats import grid_width
    >>> shares((grid_width(2, 64), grid_width(3, 64), grid_width(4, 64))).tolist()
    [1.0, 0.2]
    >>> shares((grid_width(2, 64), grid_width(2, 32), grid_width(2, 16))).round(2).tolist()
    [1.0, 0.55]
    """
    error = 4.0 ** -np.asarray([width.bits_with_scales for width in widths], dtype=np.float64)
    span = error[0] - error[-1]
    return np.asarray((error[:-1] - error[-1]) / span if span else np.ones(len(error) - 1), dtype=np.float64)


def regress(samples: Samples) -> Sensitivity:
    """Fit v = c + b'x + sum of w_kl x_k x_l by ridge on every measured coalition. [ours]

    The covariance of marginals is in nats squared and is not the pairwise interaction; this is, and it costs
    no further evaluation.
    """
    choices = choices_of(len(samples.costs.players), len(samples.costs.widths))
    assignments = list(samples.values)
    x = (np.asarray(assignments)[:, choices[:, 0]] == choices[:, 1]).astype(np.float64)
    y = np.asarray([samples.mean(item) for item in assignments])
    fit = fit_quadratic(x, y, choices[:, 0])
    details = fit.details(len(y))
    return surrogate(samples, "regression", fit.linear, fit.pair, details, intercept=fit.intercept)


def surrogate(
    samples: Samples,
    method: str,
    linear: NDArray[np.float64],
    pair: NDArray[np.float64],
    details: Json,
    intercept: float | None = None,
) -> Sensitivity:
    return Sensitivity(
        method=method,
        choices=choices_of(len(samples.costs.players), len(samples.costs.widths)),
        linear=linear,
        pair=pair,
        intercept=samples.nll_high if intercept is None else intercept,
        costs=samples.costs,
        settings=samples.settings,
        details=plain(details),
    )


def sensitivity_from(content: Json) -> Sensitivity:
    """Read back what `artifact.plain` wrote.

    Raises:
        ArtifactCorruptError: a field is missing or misshapen.
    """
    try:
        choices = len(content["choices"])
        return Sensitivity(
            method=content["method"],
            choices=np.asarray(content["choices"], dtype=np.int64).reshape(-1, 2),
            linear=np.asarray(content["linear"], dtype=np.float64),
            pair=np.asarray(content["pair"], dtype=np.float64).reshape(choices, choices),
            intercept=float(content["intercept"]),
            costs=costs_from(content["costs"]),
            settings=content["settings"],
            details=content["details"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactCorruptError(f"sensitivity: field {error} is missing or malformed", "make it again") from error
