"""Metrics of detectors, from scores."""

from gradood.evaluation.adversarial import AdversarialMetrics, evaluate_adversarial
from gradood.evaluation.curves import RocPoints, roc_points
from gradood.evaluation.guaranteed import Guarantee, GuaranteedMetrics, evaluate_guaranteed
from gradood.evaluation.metrics import Metrics, evaluate

__all__ = [
    "AdversarialMetrics",
    "Guarantee",
    "GuaranteedMetrics",
    "Metrics",
    "RocPoints",
    "evaluate",
    "evaluate_adversarial",
    "evaluate_guaranteed",
    "roc_points",
]
