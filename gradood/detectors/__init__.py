"""Gradient norms or model outputs -> score, threshold, decision."""

from gradood.detectors.base import Detector
from gradood.detectors.baselines import Energy, MaxSoftmax
from gradood.detectors.checkpoint import load
from gradood.detectors.confounding import ConfoundingDetector
from gradood.detectors.gmm import GradientGMM
from gradood.detectors.gradient import GradientDetector
from gradood.detectors.knn import GradientKNN
from gradood.detectors.mahalanobis import GradientMahalanobis

__all__ = [
    "ConfoundingDetector",
    "Detector",
    "Energy",
    "GradientDetector",
    "GradientGMM",
    "GradientKNN",
    "GradientMahalanobis",
    "MaxSoftmax",
    "load",
]
