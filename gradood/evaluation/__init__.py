"""Metrics of detectors, from scores."""

from gradood.evaluation.curves import RocPoints, roc_points
from gradood.evaluation.metrics import Metrics, evaluate

__all__ = ["Metrics", "RocPoints", "evaluate", "roc_points"]
