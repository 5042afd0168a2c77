"""Randomized smoothing: certificates for classes, scores, quantiles and decisions.

Data flow: ``noise`` -> ``inference`` -> ``counting``, driven by ``sampling`` -> ``tally`` ->
``bounds`` -> certificates. Every certificate is about the smoothed model.
"""

from gradood.smoothing.classes import ClassCertificates, certify_class
from gradood.smoothing.commitment import Commitment, commit
from gradood.smoothing.decisions import DecisionCertificates, certify_decision
from gradood.smoothing.denoisers import EpsDenoiser, NoiseLevel, from_diffusers, from_openai
from gradood.smoothing.evidence import Evidence
from gradood.smoothing.means import MeanCertificates, certify_mean
from gradood.smoothing.patched_unet import embedded_denoiser
from gradood.smoothing.quantiles import QuantileCertificates, certify_quantile
from gradood.smoothing.settings import Smoothing
from gradood.smoothing.spreads import SpreadCertificates, certify_spread
from gradood.smoothing.verification import read_records, verify, verify_with_model

__all__ = [
    "ClassCertificates",
    "Commitment",
    "DecisionCertificates",
    "EpsDenoiser",
    "Evidence",
    "MeanCertificates",
    "NoiseLevel",
    "QuantileCertificates",
    "Smoothing",
    "SpreadCertificates",
    "certify_class",
    "certify_decision",
    "certify_mean",
    "certify_quantile",
    "certify_spread",
    "embedded_denoiser",
    "commit",
    "from_diffusers",
    "from_openai",
    "read_records",
    "verify",
    "verify_with_model",
]
