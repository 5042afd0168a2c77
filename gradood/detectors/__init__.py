"""Gradient norms or model outputs -> score, threshold, decision."""

from gradood.detectors.base import DETECTORS, Detector
from gradood.detectors.baselines import Energy, MaxSoftmax
from gradood.detectors.confounding import ConfoundingDetector
from gradood.detectors.gmm import GradientGMM
from gradood.detectors.gradient import GradientDetector
from gradood.detectors.head import ExGrad, GradNorm
from gradood.detectors.knn import GradientKNN
from gradood.detectors.loading import load
from gradood.detectors.mahalanobis import GradientMahalanobis
from gradood.detectors.norm_detector import NormDetector, needs_fit
from gradood.detectors.novelty import Novelty
from gradood.detectors.parts import PARTS, Part, vector_part
from gradood.detectors.threshold import conservative_threshold
from gradood.detectors.uncertainty import GradUncertainty

__all__ = [
    "DETECTORS",
    "PARTS",
    "ConfoundingDetector",
    "Detector",
    "Energy",
    "ExGrad",
    "GradNorm",
    "GradUncertainty",
    "GradientDetector",
    "GradientGMM",
    "GradientKNN",
    "GradientMahalanobis",
    "MaxSoftmax",
    "NormDetector",
    "Novelty",
    "Part",
    "conservative_threshold",
    "load",
    "needs_fit",
    "vector_part",
]
