"""Gradient norms or model outputs -> score, threshold, decision.

A detector is a file here and a line below: its class registers itself by being imported.
"""

from gradood.detectors.base import DETECTORS as DETECTORS, Detector as Detector
from gradood.detectors.baselines import Energy as Energy, MaxSoftmax as MaxSoftmax
from gradood.detectors.confounding import ConfoundingDetector as ConfoundingDetector
from gradood.detectors.entropy import GeneralizedEntropy as GeneralizedEntropy
from gradood.detectors.gmm import GradientGMM as GradientGMM
from gradood.detectors.gradient import GradientDetector as GradientDetector
from gradood.detectors.head import ExGrad as ExGrad, GradNorm as GradNorm
from gradood.detectors.knn import GradientKNN as GradientKNN
from gradood.detectors.loading import load as load
from gradood.detectors.mahalanobis import GradientMahalanobis as GradientMahalanobis
from gradood.detectors.naming import by_name as by_name, needs_fit as needs_fit
from gradood.detectors.norm_detector import NormDetector as NormDetector
from gradood.detectors.novelty import Novelty as Novelty
from gradood.detectors.parts import PARTS as PARTS, Part as Part, vector_part as vector_part
from gradood.detectors.threshold import conservative_threshold as conservative_threshold
from gradood.detectors.uncertainty import GradUncertainty as GradUncertainty
