"""Metrics of detectors, from scores."""

from gradood.evaluation.adversarial import AdversarialMetrics, evaluate_adversarial
from gradood.evaluation.conformal import (
    bound_false_discoveries,
    control_fdr,
    worst_case_p_values,
)
from gradood.evaluation.curves import RocPoints, roc_points
from gradood.evaluation.guaranteed import Guarantee, GuaranteedMetrics, evaluate_guaranteed
from gradood.evaluation.metrics import Metrics, evaluate

__all__ = [
    "AdversarialMetrics",
    "Guarantee",
    "GuaranteedMetrics",
    "Metrics",
    "RocPoints",
    "bound_false_discoveries",
    "control_fdr",
    "evaluate",
    "evaluate_adversarial",
    "evaluate_guaranteed",
    "roc_points",
    "worst_case_p_values",
]
