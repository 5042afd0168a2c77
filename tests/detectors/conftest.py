"""Real pictures and the real classifier; the norms are computed once."""

from dataclasses import dataclass
from functools import cache

import pytest
from torch import Tensor

from gradood.data import embedded_classifier, embedded_images
from gradood.detectors import (
    ConfoundingDetector,
    Energy,
    ExGrad,
    GradientDetector,
    GradientGMM,
    GradientKNN,
    GradientMahalanobis,
    GradNorm,
    GradUncertainty,
    MaxSoftmax,
)
from gradood.gradients import gradient_norms

GRADIENT = (
    *(ConfoundingDetector, GradientDetector),
    *(GradientMahalanobis, GradientKNN, GradientGMM),
)
ALL = (*GRADIENT, MaxSoftmax, Energy, GradNorm, ExGrad, GradUncertainty)


@dataclass(frozen=True)
class Pictures:
    fit: Tensor
    normal: Tensor
    anomalies: Tensor
    anomalous: Tensor


@pytest.fixture(scope="session")
def model():
    return embedded_classifier()


@pytest.fixture(scope="session")
def pictures():
    mnist = embedded_images("mnist")
    return Pictures(
        fit=embedded_images("fashion-mnist-train")[:200],
        normal=embedded_images("fashion-mnist")[:80],
        anomalies=mnist[:60],
        anomalous=mnist[200:260],
    )


@pytest.fixture(scope="session")
def norms(model, pictures):
    """GradientNorms by the name of the pictures."""
    return {name: gradient_norms(model, images) for name, images in vars(pictures).items()}


#: Norms under other labels, by the detector that reads them.
OTHER_LOSS = {GradUncertainty: "bce_softmax"}


@pytest.fixture(scope="session")
def norms_for(model, pictures, norms):
    """A function: detector, name of the pictures -> the GradientNorms that the detector reads."""

    @cache
    def under(loss):
        return {name: gradient_norms(model, x, loss=loss) for name, x in vars(pictures).items()}

    def find(detector, name):
        loss = OTHER_LOSS.get(type(detector))
        return norms[name] if loss is None else under(loss)[name]

    return find


@pytest.fixture(scope="session")
def fitted(model, norms):
    """A function: detector class and its options -> a fitted detector."""

    def fit(detector_class, **options):
        if detector_class is GradientGMM:
            options = {"components": 3, **options}
        detector = detector_class(model, **options)
        sources = [norms["fit"]]
        if detector_class is ConfoundingDetector:
            sources.append(norms["anomalies"])
        return detector.fit(*sources)

    return fit


@pytest.fixture(params=ALL, ids=lambda cls: cls.__name__)
def detector(request, fitted):
    return fitted(request.param)


@pytest.fixture(params=GRADIENT, ids=lambda cls: cls.__name__)
def gradient_detector(request, fitted):
    return fitted(request.param)
