"""gradood: is this input anomalous for my network, and can I prove it?

Per-sample gradient norms, anomaly detectors on them, and certificates for PyTorch classifiers.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradood.detectors import (
        ConfoundingDetector,
        Detector,
        Energy,
        ExGrad,
        GradientDetector,
        GradientGMM,
        GradientKNN,
        GradientMahalanobis,
        GradNorm,
        GradUncertainty,
        MaxSoftmax,
        load,
    )
    from gradood.evaluation import (
        Metrics,
        control_fdr,
        evaluate,
        evaluate_adversarial,
        evaluate_guaranteed,
    )
    from gradood.gradients import (
        Explanation,
        GradientGrams,
        GradientNorms,
        explain,
        gradient_grams,
        gradient_norms,
    )
    from gradood.smoothing import (
        ClassCertificates,
        DecisionCertificates,
        EpsDenoiser,
        MeanCertificates,
        QuantileCertificates,
        Smoothing,
        certify_class,
        certify_decision,
        certify_mean,
        certify_quantile,
        certify_spread,
        from_diffusers,
        from_openai,
    )

__version__ = _version("gradood")

#: Where each public name lives: imported when it is first used, so that ``import gradood`` is fast.
_HOMES = {
    "ClassCertificates": "gradood.smoothing",
    "ConfoundingDetector": "gradood.detectors",
    "DecisionCertificates": "gradood.smoothing",
    "Detector": "gradood.detectors",
    "Energy": "gradood.detectors",
    "EpsDenoiser": "gradood.smoothing",
    "ExGrad": "gradood.detectors",
    "Explanation": "gradood.gradients",
    "GradNorm": "gradood.detectors",
    "GradUncertainty": "gradood.detectors",
    "GradientDetector": "gradood.detectors",
    "GradientGMM": "gradood.detectors",
    "GradientGrams": "gradood.gradients",
    "GradientKNN": "gradood.detectors",
    "GradientMahalanobis": "gradood.detectors",
    "GradientNorms": "gradood.gradients",
    "MaxSoftmax": "gradood.detectors",
    "MeanCertificates": "gradood.smoothing",
    "Metrics": "gradood.evaluation",
    "QuantileCertificates": "gradood.smoothing",
    "Smoothing": "gradood.smoothing",
    "certify_class": "gradood.smoothing",
    "certify_decision": "gradood.smoothing",
    "certify_mean": "gradood.smoothing",
    "certify_quantile": "gradood.smoothing",
    "certify_spread": "gradood.smoothing",
    "evaluate": "gradood.evaluation",
    "evaluate_adversarial": "gradood.evaluation",
    "evaluate_guaranteed": "gradood.evaluation",
    "control_fdr": "gradood.evaluation",
    "explain": "gradood.gradients",
    "from_diffusers": "gradood.smoothing",
    "from_openai": "gradood.smoothing",
    "gradient_grams": "gradood.gradients",
    "gradient_norms": "gradood.gradients",
    "load": "gradood.detectors",
}
__all__ = [
    "ClassCertificates",
    "ConfoundingDetector",
    "DecisionCertificates",
    "Detector",
    "Energy",
    "EpsDenoiser",
    "ExGrad",
    "Explanation",
    "GradNorm",
    "GradUncertainty",
    "GradientDetector",
    "GradientGMM",
    "GradientGrams",
    "GradientKNN",
    "GradientMahalanobis",
    "GradientNorms",
    "MaxSoftmax",
    "MeanCertificates",
    "Metrics",
    "QuantileCertificates",
    "Smoothing",
    "certify_class",
    "certify_decision",
    "certify_mean",
    "certify_quantile",
    "certify_spread",
    "evaluate",
    "evaluate_adversarial",
    "control_fdr",
    "evaluate_guaranteed",
    "explain",
    "from_diffusers",
    "from_openai",
    "gradient_grams",
    "gradient_norms",
    "load",
]


#: Packages that are public themselves, imported on first use as well.
_PACKAGES = ("attacks", "data", "detectors", "distro", "evaluation", "gradients", "smoothing")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"gradood.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'gradood' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_PACKAGES})
