"""Metrics of detectors, from scores."""

from gradood.evaluation.curves import RocPoints, roc_points
from gradood.evaluation.guaranteed import Guarantee, GuaranteedMetrics, evaluate_guaranteed
from gradood.evaluation.metrics import Metrics, evaluate

__all__ = [
    "Guarantee",
    "GuaranteedMetrics",
    "Metrics",
    "RocPoints",
    "evaluate",
    "evaluate_guaranteed",
    "roc_points",
]
