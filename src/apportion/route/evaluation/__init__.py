"""A router against everything else that could have been done. What this package offers; the rest is its own."""

from apportion.route.evaluation.evaluate import evaluate_router
from apportion.route.evaluation.evaluation import Evaluation
from apportion.route.evaluation.field import EvaluationPlan
from apportion.route.evaluation.parts import Parts
from apportion.route.evaluation.plot import draw_frontier
from apportion.route.evaluation.report import report, write_evaluation

__all__ = ["Evaluation", "EvaluationPlan", "Parts", "draw_frontier", "evaluate_router", "report", "write_evaluation"]
