"""Sensitivity x Budget -> Plan: a binary quadratic program, linearised and solved exactly by SCIP.

Minimise sum of linear[k] x_k + sum over pairs of pair[k, l] y_kl with y_kl = x_k x_l as
y <= x_k, y <= x_l, y >= x_k + x_l - 1, at most one choice per player, and the bytes within the budget.
Source: CoopQ, section on allocation (there with two widths); any set of widths is ours.
"""

from dataclasses import replace

import numpy as np

from apportion.bits.game import Assignment
from apportion.bits.plan.budget import Budget
from apportion.bits.plan.plan import Plan
from apportion.bits.plan.sensitivity import Sensitivity
from apportion.core.arrays import NDArray
from apportion.core.errors import BudgetError

TIME_LIMIT_S = 60.0
NEGLIGIBLE = 1e-9  # pairs this small relative to the largest coefficient cannot change a plan worth naming
TIE = 1e-7  # relative price of the whole byte range: of equal plans the one with more bits is taken


def allocate(
    sensitivity: Sensitivity,
    budget: Budget,
    *,
    exclude: tuple[Assignment, ...] = (),
    seconds: float = TIME_LIMIT_S,
) -> Plan:
    """The plan of least predicted loss within a budget.

    Args:
        sensitivity: of `estimate`. budget: of `budget_from_bits` or `budget_from_bytes`.
        exclude: assignments that are not to be chosen again (for the next best plans).
        seconds: time limit of the solver; a plan that is not proved optimal by then says so. Where none was found
            by then, the first that is found later.

    Returns:
        The plan; `optimal` where the solver proved it. Of plans with equal loss the one with more bytes. Where every
        player could have the highest width and some do not, `asked` says so: their estimated costs are below zero.

    Raises:
        BudgetError: nothing fits.

    Cost: a second or less up to some fifty players with all pairs; `seconds` at most beyond.

    Source: CoopQ, allocation: min a'q + q'Kq with products linearised, solved by SCIP; here for any number of widths
    and in exact bytes.

    >>> from apportion import Recipe, budget_from_bits, estimate, open_model, take_samples
    >>> recipe = Recipe(calibration=TEXT, windows=2, window_tokens=24, group_size=32, permutations=2)
    >>> sensitivity = estimate(take_samples(open_model(MODEL, recipe), OUT))
    >>> plan = allocate(sensitivity, budget_from_bits(sensitivity.costs, 3))
    >>> sorted(plan.by_name().values()), plan.optimal  # two blocks, one at each width
    (['w2g32', 'w4g32'], True)
    """
    assignment, gap = solve(sensitivity, budget.player_bytes, exclude, seconds)
    plan = plan_of(sensitivity, budget, assignment, gap)
    below = sum(column < len(sensitivity.costs.widths) - 1 for column in assignment)
    if exclude or not below or budget.player_bytes < sensitivity.costs.spent(sensitivity.costs.uniform(-1)):
        return plan
    said = f"; {below} players below the highest width by estimates under zero, which more samples may raise"
    return replace(plan, asked=f"{plan.asked}{said}")


def plan_of(sensitivity: Sensitivity, budget: Budget, assignment: Assignment, gap: float = 0.0) -> Plan:
    """A plan with its costs and its predicted loss."""
    costs = sensitivity.costs
    bytes_spent = costs.spent(assignment)
    assert bytes_spent <= budget.player_bytes, "the solver left the budget"
    return Plan(
        costs=costs,
        assignment=assignment,
        avg_bits=costs.average_bits(assignment),
        player_bytes=bytes_spent,
        total_bytes=bytes_spent + costs.fixed_bytes,
        budget_bytes=budget.player_bytes,
        asked=budget.asked,
        method=sensitivity.method,
        predicted_nll=sensitivity.predict(assignment),
        optimal=gap == 0.0,
        gap=gap,
        settings=sensitivity.settings,
    )


def savings_of(sensitivity: Sensitivity) -> NDArray[np.int64]:
    """Bytes that each choice saves against the highest width."""
    table = sensitivity.costs.bytes
    players, columns = sensitivity.choices.T
    found: NDArray[np.int64] = table[players, -1] - table[players, columns]
    return found


def solve(
    sensitivity: Sensitivity, budget_bytes: int, exclude: tuple[Assignment, ...] = (), seconds: float = TIME_LIMIT_S
) -> tuple[Assignment, float]:
    """Assignment and relative gap (0 if proved optimal)."""
    from pyscipopt import Model, quicksum

    largest = sensitivity.costs.spent(sensitivity.costs.uniform(-1))
    must_save = largest - budget_bytes
    savings = savings_of(sensitivity)
    unit = max(float(np.abs(sensitivity.linear).max()), float(np.abs(sensitivity.pair).max()), 1e-300)
    linear, pair = sensitivity.linear / unit * 1e3, sensitivity.pair / unit * 1e3
    model = Model("allocation")
    model.hideOutput()
    model.setParam("limits/time", seconds)
    model.setParam("limits/gap", 0.0)
    model.setParam("randomization/randomseedshift", 0)
    x = [model.addVar(vtype="B") for _ in linear]
    for player in range(len(sensitivity.costs.players)):
        own = [x[k] for k in np.flatnonzero(sensitivity.choices[:, 0] == player)]
        if len(own) > 1:
            model.addCons(quicksum(own) <= 1)
    scale = max(int(np.gcd.reduce(savings)), 1)
    model.addCons(quicksum(int(s) // scale * v for s, v in zip(savings, x, strict=True)) >= int(-(-must_save // scale)))
    terms = [float(c) * v for c, v in zip(linear, x, strict=True)]
    tie = TIE * 1e3 / max(int(savings.max()), 1)
    terms += [float(tie * s) * v for s, v in zip(savings, x, strict=True)]
    for k, m in zip(*np.nonzero(np.triu(np.abs(pair) > NEGLIGIBLE * 1e3, k=1)), strict=True):
        y = model.addVar(vtype="C", lb=0.0, ub=1.0)
        if pair[k, m] > 0:
            model.addCons(y >= x[k] + x[m] - 1)
        else:
            model.addCons(y <= x[k])
            model.addCons(y <= x[m])
        terms.append(float(pair[k, m]) * y)
    for assignment in exclude:
        taken = sensitivity.chosen(assignment)
        model.addCons(quicksum(v if t else 1 - v for v, t in zip(x, taken, strict=True)) <= len(x) - 1)
    model.setObjective(quicksum(terms), "minimize")
    model.optimize()
    if model.getNSols() == 0 and model.getStatus() == "timelimit":  # the first plan found is better than none
        model.setParam("limits/time", 1e20)
        model.setParam("limits/solutions", 1)
        model.optimize()
    if model.getNSols() == 0:
        raise BudgetError(f"budget {budget_bytes:,} bytes: no further plan fits", "give a larger budget")
    taken = np.asarray([model.getVal(v) > 0.5 for v in x])
    proved = model.getStatus() in ("optimal", "gaplimit")
    return assignment_of(sensitivity, taken), 0.0 if proved else float(model.getGap())


def assignment_of(sensitivity: Sensitivity, taken: NDArray[np.bool_]) -> Assignment:
    """The assignment that makes these choices."""
    columns = list(sensitivity.costs.uniform(-1))
    for player, column in sensitivity.choices[taken].tolist():
        columns[player] = column
    return tuple(columns)
