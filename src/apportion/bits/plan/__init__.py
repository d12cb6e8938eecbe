"""From measured values to a plan: estimate, allocate under a budget, or search by measuring. Knows no model."""

from apportion.bits.plan.allocate import allocate, plan_of
from apportion.bits.plan.budget import Budget, bits_range, budget_from_bits, budget_from_bytes, parse_bytes
from apportion.bits.plan.plan import Plan, plan_from
from apportion.bits.plan.search import Found, require_evaluations, search
from apportion.bits.plan.sensitivity import (
    METHODS,
    Sensitivity,
    choices_of,
    estimate,
    require_alpha,
    require_estimable,
    sensitivity_from,
    surrogate,
    two_width,
)
from apportion.bits.plan.stopping import PlansStable

__all__ = [
    "METHODS",
    "Budget",
    "Found",
    "Plan",
    "PlansStable",
    "Sensitivity",
    "allocate",
    "bits_range",
    "budget_from_bits",
    "budget_from_bytes",
    "choices_of",
    "estimate",
    "parse_bytes",
    "plan_from",
    "plan_of",
    "require_alpha",
    "require_estimable",
    "require_evaluations",
    "search",
    "sensitivity_from",
    "surrogate",
    "two_width",
]
